"""Small real tokenizers, trained on the spot: byte-level BPE behind transformers, and chat templates people meet."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "You are a helpful AI assistant.",
    "What is the capital of France? The capital of France is Paris.",
    "How do I reset my password? Open the settings and choose reset.\n\nThen follow the link.",
    "Instruction: answer in one word.\n\n\nYes. No. Perhaps, 12 + 30 = 42.",
    "আমি বাংলায় গান গাই। আমার সোনার বাংলা।",
    "assistant\nuser\nsystem\nmodel\n[INST] [/INST]",
]

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (  # a system message stands in the last user turn, and moves on with it
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{% if system is defined and (loop.last or loop.index0 == turns | length - 2) %}"
    "{{ '[INST]' + system + '\n\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST]' + message['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
THOUGHTS = (  # as Qwen3 writes: thoughts are kept in the last answer only, and an empty one is put there
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% set parts = message['content'].split('</think>') %}"
    "{% if loop.last %}{% set thought = parts[0].split('<think>')[-1] if parts | length > 1 else '' %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPTED_THOUGHT = THOUGHTS.replace(
    "assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}"
)  # Qwen3-Thinking's
OPENED_THOUGHT = (  # as a distilled R1 writes: the generation prompt opens a thought that the answer does not have
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
UNPROMPTED = (  # the generation prompt is left out, so that an answer begins with its own header
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
HARMONY = (  # as gpt-oss writes: an answer names its channel first, and the last is closed by another token
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
HERMES = (  # tools and calls of them, as Hermes and Qwen write them
    "{% if tools %}<|im_start|>system\nCall one as <tool_call></tool_call>:{% for tool in tools %}\n{{ tool | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (  # as Qwen3 writes: an empty thought before the last answer alone, results of calls as the user's
    "{% if tools %}<|im_start|>system\n# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ message.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '\n' if message.content or not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3_TOOLS = (  # as Llama 3.1 writes: tools before the first question, one call of `parameters`, results as JSON
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>"
    "{{ 'ipython' if message.role == 'tool' else message.role }}<|end_header_id|>\n\n"
    "{% if message.role == 'user' and tools and not shown.done %}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% set shown.done = true %}{% endif %}"
    "{% if message.tool_calls %}{% if message.tool_calls | length > 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set function = message.tool_calls[0].function %}"
    '{"name": "{{ function.name }}", "parameters": {{ function.arguments | tojson }}}'
    "{% elif message.role == 'tool' %}{{ message.content | tojson }}{% else %}{{ message.content | trim }}{% endif %}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
).replace("{{ bos_token }}", "{{ bos_token }}{% set shown = namespace(done=false) %}", 1)
DEEPSEEK = (  # as DeepSeek V3 writes: arguments are text, which it joins to others
    "{% for tool in tools or [] %}{{ '## ' + tool.function.name + '\n' }}{% endfor %}"
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<|call|>' + call.function.name + '\n```json\n' + call.function.arguments + '\n```' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PHI = (  # one more token ends the whole text, behind that which ends every turn
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
UNMARKED = (  # plain words around the turns, and nothing but an empty line behind them
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


def tokenizer(
    template: str | None,
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    split: str = GPT2_SPLIT,
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some 600 tokens; the padding token is "<pad>", id 0."""
    core = Tokenizer.from_str(_trained(special, bos, eos, split))
    if adds_bos and bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token="<pad>")
    wrapped.chat_template = template
    return wrapped


@cache
def _trained(special: tuple[str, ...], bos: str | None, eos: str | None, split: str) -> str:
    """The tokenizer without what wraps it, as JSON."""
    core = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    core.decoder = decoders.ByteLevel()
    names = [name for name in dict.fromkeys(("<pad>", *special, bos, eos)) if name is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    return core.to_str()


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """As SmolLM2's: ChatML, with a system message of its own where none is given."""
    return tokenizer(CHATML)


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return tokenizer(LLAMA3, special, "<|begin_of_text|>", "<|eot_id|>", LLAMA3_SPLIT, adds_bos=True)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", adds_bos=True)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(MISTRAL, ("[INST]", "[/INST]"), "<s>", "</s>", adds_bos=True)


def phi_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), eos="<|endoftext|>")


def thoughts_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(THOUGHTS)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(QWEN)


def hermes_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(HERMES)


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """A base model's: no chat template."""
    return tokenizer(None, (), "<s>", "</s>", adds_bos=True)
