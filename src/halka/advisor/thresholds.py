"""All that the verdict decides by, and from where on something is told: each number with where it comes from.

"First half" are the cases of benchmarks/advisor.py on which thresholds were set; the others were held aside.
"""

# ── the verdict ─────────────────────────────────────────────────────────────────────────────────────────────────────

TOLERANCE = 0.08  # score; set on the first half: what 64 test items cannot tell
WORTH_GATHERING = 0.12  # score; set on the first half: gathering data costs people's time, training does not
HALF = 0.5  # of the loss; set on the first half (tofu): a few answers are right by luck, all their tokens are not
OF_USE = 0.1  # score above the best trivial answer, below which nothing was learned that helps; a convention
OF_THE_REST = 0.5  # of what the best trivial answer leaves, where that is less than twice `OF_USE`; a convention
FEW_EXAMPLES = 50  # to train on, where guidance on fine-tuning begins; set after a case held aside (few_lamps)
LEARNING = 1 / 3  # of the loss, by which a curve still falls if it goes on; set after a case held aside (snips)
FALLING = 0.1  # of the loss, by which it falls with more examples: trials of one kind differ so on the first half
# Kappa by which trials agree better with each other than with the labels; half way between the first half's
# noisy intents (0.49) and its emotions and places (0.05, -0.02).
NOISY = 0.25

# ── how far, and how sure ───────────────────────────────────────────────────────────────────────────────────────────

FARTHER = 4  # times as many steps, or examples, to which curves are followed; a convention
RISING = 3  # times the noise of a curve's points, by which its end lies above its best where it rises; a convention
UNSURE = 0.8  # of the confidence, for each thing that was not looked at; a convention
UNTRIED = 0.5  # of the confidence, where a rule of thumb chose; a convention
HIGH, MEDIUM = 0.85, 0.65  # confidence from which it is called so; a convention

# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────

FEW_HELD_OUT = 30  # examples, below which an interval of a share is wider than 0.35 (binomial, at one half)
FALLS = 0.1  # share of a loss by which it falls visibly: twice the width of a typical interval on 32 examples
HELD = 0.6  # share of answers that stand in the passages found, below which retrieval is the weak part; a convention
LEAKED = 0.05  # share of held-out examples that stand in the training data, from which it is told; a convention
