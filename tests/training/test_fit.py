"""`fit` trains to the end, in memory or in a folder that can be resumed; `train` that nobody iterates says so."""

from __future__ import annotations

import gc
import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from filelock import FileLock

import halka
from halka.cli.train_settings import read
from halka.data.examples import Example, Message
from halka.methods import Joint
from halka.training import Job, Observer, RunFolder, Step, TrainConfig, TrainResult, fit, train, train_many
from halka.training.checkpoint import Progress
from halka.training.run_folder import curve_of
from halka.util.errors import DivergedError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from training_for_tests import items, model_for, same, weights

SHORT = TrainConfig(lr=1e-2, steps=6, batch_size=2, evaluate_every=2)


def test_it_trains_what_train_trains_and_says_what_came_of_it():
    model, other, seen = model_for(), model_for(), []
    result = fit(model, "a", items(), SHORT, validation=items(3, seed=9), on_step=seen.append)
    steps = list(train(other, "a", items(), SHORT, validation=items(3, seed=9)))
    assert same(weights(model), weights(other))
    best = min((step for step in steps if step.validation is not None), key=lambda step: step.validation)
    assert [step.loss for step in seen] == [step.loss for step in steps]
    assert (result.steps, result.loss, result.tokens) == (6, steps[-1].loss, steps[-1].tokens)
    assert (result.best_step, result.validation_loss) == (best.step, best.validation)
    assert result.seconds > 0
    assert result.parameters == model.adapter("a").count()
    assert result.adapter is None


@pytest.mark.parametrize(("own", "common"), [("Be brief.", "Be brief."), ("Be polite.", ""), (None, "")])
def test_the_card_has_the_system_message_that_all_examples_begin_with(own, common, tmp_path):
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=2))
    rows = [{"prompt": f"What is {number}?", "completion": str(number), "system": "Be brief."} for number in range(3)]
    rows.append({**rows[0], "system": own})
    fit(model, "a", rows, {"steps": 1}, folder=tmp_path / "run")
    assert halka.AdapterFolder.open(tmp_path / "run" / "adapter").system == common


def test_without_validation_the_last_step_is_the_best():
    result = fit(model_for(), "a", items(), replace(SHORT, steps=2))
    assert (result.best_step, result.validation_loss) == (2, None)


def test_a_folder_has_settings_metrics_and_the_adapter(tmp_path):
    model = model_for()
    result = fit(model, "a", items(), SHORT, validation=items(3, seed=9), folder=tmp_path / "deep" / "run")
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.finished
    assert result.adapter == folder.adapter
    assert sorted(file.name for file in folder.path.iterdir()) == ["adapter", "metrics.jsonl", "run.yaml"]
    assert TrainResult.of(folder.steps(), result.parameters, result.adapter) == result
    settings = yaml.safe_load((folder.path / "run.yaml").read_text())
    assert (settings["method"], settings["rank"], settings["train"]["steps"]) == ("lora", 4, 6)
    card = json.loads((folder.adapter / "halka.json").read_text())
    assert card["training"]["steps"] == 6
    losses = [{"step": step.step, "loss": step.loss, "validation": step.validation} for step in folder.steps()]
    assert card["training"]["curve"] == losses
    assert card["measurements"] == {"validation_loss": result.validation_loss}
    with (folder.path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 7, "lo')  # a crash, or a full disk
    assert len(folder.steps()) == 6
    with pytest.raises(halka.HalkaError, match=r"deep has no metrics\.jsonl: name the folder of a training run"):
        RunFolder(tmp_path / "deep").steps()
    other = halka.adapt(model_for().base)
    halka.load(other, folder.adapter, name="a")
    assert same(weights(other), weights(model))
    with pytest.raises(halka.HalkaError, match="holds a finished run"):
        fit(model_for(), "a", items(), SHORT, folder=folder.path)


def test_a_stopped_run_is_resumed_with_the_same_result(tmp_path):
    whole = model_for()
    expected = fit(whole, "a", items(), SHORT, validation=items(3, seed=9))

    def stop(step: Step) -> None:
        if step.step == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped") as error:  # whose traceback keeps all that was under way
        fit(model_for(), "a", items(), SHORT, validation=items(3, seed=9), folder=tmp_path, on_step=stop)
    assert RunFolder(tmp_path).resumable, error
    model, seen = model_for(), []
    result = fit(model, "a", items(), SHORT, validation=items(3, seed=9), folder=tmp_path, on_step=seen.append)
    assert [step.step for step in seen] == [4, 5, 6]
    assert same(weights(model), weights(whole))
    assert replace(result, seconds=0, adapter=None) == replace(expected, seconds=0)


def test_steps_that_were_lost_or_are_of_another_version_are_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    fit(model_for(), "a", items(), SHORT, folder=tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(
        halka.HalkaError, match=r"metrics\.jsonl has lost its steps: remove .*, or choose another folder"
    ):
        folder.steps()
    (tmp_path / "metrics.jsonl").write_text(metrics.replace('"step"', '"more": 1, "step"'))
    with pytest.raises(halka.HalkaError, match="has a line that is no step of this version of Halka"):
        folder.steps()


def test_progress_of_a_newer_version_is_an_error():
    saved = asdict(Progress(step=3, tokens=5))
    assert Progress.of(saved) == Progress(step=3, tokens=5)
    with pytest.raises(halka.HalkaError, match=r"of another version of Halka \(.*'more'\): go on with that one"):
        Progress.of({**saved, "more": 1})


@pytest.mark.parametrize("name", ["parts-1/data.csv", "best-7.safetensors", "adapters/step-3/mine.txt"])
@pytest.mark.parametrize("many", [False, True])
def test_train_drops_nothing_that_is_no_run_s(name, many, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    (tmp_path / "run.json").write_text("{}")  # others' files, which no run has to do with
    job = Job("a", items(), SHORT, folder=tmp_path)
    with pytest.raises(halka.HalkaError, match=r"is there without a training run, which would drop it: choose another"):
        list(train_many(model_for(), [job]) if many else train(model_for(), "a", items(), SHORT, folder=tmp_path))
    assert file.read_text() == "mine"
    file.unlink()
    if file.parent != tmp_path:
        file.parent.rmdir()
    assert len(list(train(model_for(), "a", items(), SHORT, folder=tmp_path))) == SHORT.steps


def test_train_begins_again_in_a_folder_of_its_own_without_a_checkpoint(tmp_path):
    config = replace(SHORT, save_every=None)
    first = [*train(model_for(), "a", items(), config, folder=tmp_path)]
    assert sorted(file.name for file in tmp_path.iterdir() if file.name[0] != ".") == ["metrics.jsonl"]
    with pytest.raises(halka.HalkaError, match="holds no training run"):
        fit(model_for(), "a", items(), config, folder=tmp_path)
    for lost in (False, True):  # twice: a second crash may come before the first step is recorded
        if lost:
            (tmp_path / "metrics.jsonl").write_text("")
        again = [*train(model_for(), "a", items(), config, folder=tmp_path)]
        assert [step.loss for step in again] == [step.loss for step in first]


def test_a_folder_that_is_no_run_or_in_use_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(halka.HalkaError, match="is a file: name a folder"):
        fit(model_for(), "a", items(), SHORT, folder=tmp_path / "file")
    with pytest.raises(halka.HalkaError, match="holds no training run"):
        fit(model_for(), "a", items(), SHORT, folder=tmp_path / "full")
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(halka.HalkaError, match="a training is under way in"):
        fit(model_for(), "a", items(), SHORT, folder=tmp_path / "run")


def test_fit_goes_on_with_a_run_of_train(tmp_path):
    result = fit(whole := model_for(), "a", items(), SHORT)
    steps = train(model_for(), "a", items(), replace(SHORT, save_every=1), folder=tmp_path)
    assert [next(steps).step, next(steps).step, next(steps).step] == [1, 2, 3]
    steps.close()
    model, seen = model_for(), []
    again = fit(model, "a", items(), replace(SHORT, save_every=1), folder=tmp_path, on_step=seen.append)
    assert seen[0].step == 4
    assert (again.steps, again.loss) == (result.steps, result.loss)
    assert same(weights(model), weights(whole))
    assert (tmp_path / "run.yaml").exists()


def test_gradients_are_computed_where_they_are_switched_off():
    with torch.no_grad():
        assert fit(model_for(), "a", items(), SHORT).loss == fit(model_for(), "a", items(), SHORT).loss
    with torch.inference_mode(), pytest.raises(halka.HalkaError, match=r"inference_mode\(\) computes no gradients"):
        fit(model_for(), "a", items(), SHORT)
    model = model_for()
    for parameter in model.parameters("a"):
        parameter.requires_grad_(False)
    with pytest.raises(halka.HalkaError, match="nothing of adapter 'a' trains: something set requires_grad=False"):
        fit(model, "a", items(), SHORT)


def test_the_settings_are_read_by_the_command(tmp_path):
    model = halka.adapt(tiny())
    model.base.config._name_or_path = "someone/base"
    model.add("a", halka.LoRA(rank=4, targets=("attn.q",)))
    fit(model, "a", items(), SHORT, folder=tmp_path / "run")
    plan = read(tmp_path / "run" / "run.yaml", {}, {})
    assert (plan.run.base, plan.run.out.resolve(), plan.run.dtype) == ("someone/base", tmp_path / "run", "float32")
    assert plan.run.kind == "causal-lm"
    assert plan.method == halka.LoRA(rank=4, targets=("attn.q",))
    assert plan.train == SHORT


def test_adapters_on_the_way_are_kept_as_they_were(tmp_path):
    config = replace(SHORT, keep_every=2, save_every=3)
    expected, model = {}, model_for()

    def remember(step: Step) -> None:
        expected[step.step] = {key: tensor.clone() for key, tensor in weights(model).items()}
        if step.step == 5 and len(expected) == 5:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fit(model, "a", items(), config, folder=tmp_path, on_step=remember)
    model = model_for()
    fit(model, "a", items(), config, folder=tmp_path, on_step=remember)
    assert sorted(folder.name for folder in (tmp_path / "adapters").iterdir()) == ["step-2", "step-4", "step-6"]
    for step in (2, 4, 6):
        other = halka.adapt(model_for().base)
        halka.load(other, tmp_path / "adapters" / f"step-{step}", name="a")
        assert same(weights(other), expected[step])
        card = json.loads((tmp_path / "adapters" / f"step-{step}" / "halka.json").read_text())
        assert card["training"]["steps"] == step


def test_weights_that_are_not_finite_end_their_run_alone_and_are_not_kept(tmp_path):
    model = model_for()
    model.add("b", halka.LoRA(rank=2))
    config = replace(SHORT, steps=2, evaluate_every=None, keep_every=1, warmup=0.0)
    jobs = [Job("a", items(), replace(config, lr=1e38), folder=tmp_path / "a"), Job("b", items(), config)]
    first, second = train_many(model, jobs)
    assert isinstance(first["a"], DivergedError)
    assert "the weights are not finite after step 1" in str(first["a"])
    assert not (tmp_path / "a" / "adapters").exists()
    assert isinstance(second["b"], Step)


def test_kept_adapters_of_steps_that_are_made_again_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("step-2", "step-4", "step-x"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
    folder.drop_kept(after=2)
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["step-2", "step-x"]


def test_the_command_reads_the_settings_of_several_methods(tmp_path):
    model = halka.adapt(tiny())
    model.base.config._name_or_path = "someone/base"
    model.add("a", Joint((halka.LoRA(rank=4, targets=("attn.q",)), halka.BitFit(targets=("attn.o",)))))
    fit(model, "a", items(), SHORT, folder=tmp_path / "run")
    settings = tmp_path / "run" / "run.yaml"
    assert read(settings, {}, {}).whole == model.adapter("a").method


def test_the_folder_is_looked_at_before_the_examples(tmp_path):
    fit(model_for(), "a", items(), SHORT, folder=tmp_path)

    def never():
        raise AssertionError("the examples were read")
        yield

    with pytest.raises(halka.HalkaError, match="holds a finished run"):
        fit(model_for(), "a", never(), SHORT, folder=tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(halka.HalkaError, match="a training is under way in"):
        fit(model_for(), "a", never(), SHORT, folder=tmp_path)  # also where it finishes meanwhile


# ── the config ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_config_may_be_a_dict():
    one = list(train(model_for(), "a", items(), asdict(SHORT)))
    two = list(train(model_for(), "a", items(), SHORT))
    assert [step.loss for step in one] == [step.loss for step in two]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: there is no such setting; did you mean lr?"),
        ({"num_train_epochs": 1}, "num_train_epochs: there is no such setting; did you mean epochs?"),
        ({"weight_dekay": 1}, "did you mean weight_decay?"),
        ({"steps": "many"}, "steps: 'many' is not a whole number, or none"),
        ({"schedule": "step"}, "schedule: 'step' is not one of cosine, linear, constant"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(config, message):
    with pytest.raises(halka.HalkaError) as refused:
        fit(model_for(), "a", items(), config)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(learning_rate=1e-3), "learning_rate: there is no such setting; did you mean lr?"),
        (lambda: TrainConfig(lr="1e-3"), "lr must be a number or None, not '1e-3'"),
        (lambda: TrainConfig(steps=2.5), "steps must be a whole number or None, not 2.5"),
        (lambda: TrainConfig(accumulate=None), "accumulate must be a whole number, not None"),
        (lambda: TrainConfig(checkpointing="no"), "checkpointing must be true or false, not 'no'"),
        (lambda: TrainConfig(schedule="step"), "schedule is one of cosine, linear, constant, not 'step'"),
        (
            lambda: TrainConfig(warmup=0.1, warmup_steps=5),
            "warmup_steps is 5 and the share warmup 0.1",
        ),
        (lambda: TrainConfig(too_long="chop"), "too_long is one of cut, drop, error, not 'chop'"),
        (lambda: TrainConfig(*range(30)), "too many positional arguments: its fields are lr, epochs, steps"),
        (lambda: TrainConfig(1e-3, lr=1e-2), "TrainConfig(0.001, lr=0.01): multiple values for argument 'lr'"),
    ],
)
def test_a_wrong_argument_of_the_config_is_refused_by_name(make, message):
    with pytest.raises(halka.HalkaError) as refused:
        make()
    assert message in str(refused.value)


def test_help_explains_every_field():
    text = TrainConfig.__doc__
    for name, field in TrainConfig.__dataclass_fields__.items():
        assert f"{name}: " in text
        assert field.metadata["help"] in text


# ── nothing iterated, and observed ──────────────────────────────────────────────────────────────────────────────────


def test_a_generator_that_is_dropped_says_that_nothing_was_trained():
    with pytest.warns(UserWarning, match=r"nothing was trained: iterate over halka.train\(…\) or call halka.fit"):
        train(model_for(), "a", items(), SHORT)
    with pytest.warns(UserWarning, match=r"nothing was trained: iterate over halka.train_many"):
        train_many(model_for(), [Job("a", items(), SHORT)])


def test_one_that_is_used_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = train(model_for(), "a", items(), SHORT)
        next(steps)
        del steps
        train(model_for(), "a", items(), SHORT).close()
        gc.collect()


def test_an_observer_sees_every_pass():
    class Counting(Observer):
        passes = 0

        def one_pass(self):
            self.passes += 1
            return super().one_pass()

    observer = Counting()
    list(train(model_for(), "a", items(), replace(SHORT, steps=2, accumulate=3), observe=observer))
    assert observer.passes == 6


def test_an_observer_ends_a_run_early_and_its_schedule_with_it(tmp_path):
    class Ending(Observer):
        def last_step(self, step: int, steps: int) -> int:
            return 5 if step == 4 else steps

    config, held_out = replace(SHORT, steps=9, evaluate_every=3), items(2)
    for folder in (None, tmp_path / "run"):
        steps = list(train(model_for(), "a", items(), config, validation=held_out, folder=folder, observe=Ending()))
        assert [(step.step, step.steps) for step in steps] == [*((n, 9) for n in (1, 2, 3)), (4, 5), (5, 5)]
        assert [step.step for step in steps if step.validation is not None] == [3, 5]
        assert steps[-1].lr == pytest.approx(0.1 * max(step.lr for step in steps), rel=0.01)
    going_on = list(train(model_for(), "a", items(), config, validation=held_out, folder=tmp_path / "run"))
    assert [step.step for step in going_on] == [6, 7, 8, 9]


def test_validation_on_what_is_trained_is_said():
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=4))
    rows = [{"question": f"What is {number}?", "answer": "A number."} for number in range(3)]
    with pytest.warns(UserWarning, match="^the training examples have 1 prompt of validation, too"):
        fit(model, "a", rows[:2], {"steps": 1, "batch_size": 1}, validation=[rows[1] | {"answer": "Two."}, rows[2]])


def test_raw_text_is_trained_on_and_has_no_score():
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=2))
    texts = [{"text": "The tide rises twice a day."}, {"text": "It falls as often."}]
    config, steps = {"steps": 30, "lr": 0.03, "max_length": 8}, list[Step]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(model, "a", texts[:1], config, validation=texts[1:], on_step=steps.append)
    assert result.validation_loss is not None
    assert steps[0].loss > result.loss
    with pytest.raises(halka.DataError, match=r"examples\[0\] is raw text, which has no answer to score"):
        halka.evaluate(model, "a", texts)


@pytest.mark.filterwarnings("ignore:the training examples have .* of validation")
def test_rows_in_memory_are_trained_on_as_a_file_s():
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "What is it?", "answer": answer} for answer in ("It is Paris.", "A settings link.")]
    tokenizer = chatml_tokenizer()

    def losses(examples) -> list[float]:
        model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
        model.add("a", halka.LoRA(rank=4))
        return [step.loss for step in train(model, "a", examples, SHORT, validation=rows)]

    expected = losses(
        [Example((Message("user", row["question"]), Message("assistant", row["answer"]))) for row in rows]
    )
    assert losses(rows) == losses(datasets.Dataset.from_list(rows)) == losses(iter(rows)) == expected
    with pytest.raises(halka.DataError, match=r"examples\[1\]: no 'answer'"):
        losses([rows[0], {"question": "?"}])
    with pytest.raises(halka.DataError, match=r"read_examples\('train.jsonl'\)"):
        losses("train.jsonl")


def test_tokens_that_the_base_has_no_rows_for_are_named():
    """A tokenizer that was given more of them, without the base."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=4))
    tokenizer.add_tokens(["<answer>"])
    rows = [{"prompt": "Why?", "completion": "<answer> So."}]
    with pytest.raises(ValueError, match=r"have token \d+ '<answer>', and this base has rows for \d+"):
        fit(model, "a", rows, SHORT)
    model.base.resize_token_embeddings(len(tokenizer))
    again = halka.adapt(model.base, tokenizer)
    again.add("a", halka.LoRA(rank=4))
    assert fit(again, "a", rows, SHORT).steps == 6

    tokenizer.add_tokens(["<more>"])
    pairs = halka.adapt(tiny("t5", vocab_size=len(tokenizer) - 1), tokenizer)  # whose answers are texts of their own
    pairs.add("a", halka.LoRA(rank=4))
    with pytest.raises(ValueError, match=r"have token \d+ '<more>', and this base has rows for"):
        fit(pairs, "a", [{"prompt": "Why?", "completion": "<more> So."}], SHORT)


def test_a_curve_has_some_points_and_every_validation():
    steps = [
        Step(number, 1000, 1.0, 1e-3, 1.0, number, 1.0, 1.0, 1, 0.5 if number % 333 == 0 else None)
        for number in range(1, 1001)
    ]
    curve = curve_of(steps)
    assert 100 <= len(curve) <= 110
    assert (curve[0]["step"], curve[-1]["step"]) == (1, 1000)
    assert [point["step"] for point in curve if point["validation"] is not None] == [333, 666, 999]
    validated = [replace(step, validation=0.5) for step in steps[:199]]
    assert len(curve_of(validated)) <= 101
    assert curve_of(validated)[-1]["step"] == 199
    assert curve_of([]) == []
