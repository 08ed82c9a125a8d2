"""What a base is for is told by its class."""

from __future__ import annotations

import pytest
import transformers

from halka.models.kinds import KINDS, kind_of

BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9}
T5 = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1, "vocab_size": 9}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "seq2seq-lm"])
def test_every_auto_class_makes_bases_of_its_kind(kind):
    architecture = "llama" if kind == "causal-lm" else "bert"
    config = transformers.AutoConfig.for_model(architecture, **BERT)
    assert kind_of(getattr(transformers, KINDS[kind]).from_config(config)) == kind


def test_an_encoder_and_decoder_writes_one_text_from_another():
    config = transformers.AutoConfig.for_model("t5", **T5)
    assert kind_of(transformers.AutoModelForSeq2SeqLM.from_config(config)) == "seq2seq-lm"


def test_a_class_made_from_transformers_own_is_of_its_kind():
    class Mine(transformers.BertForTokenClassification):
        pass

    assert kind_of(Mine(transformers.BertConfig(**BERT))) == "token-classification"


def test_a_bare_encoder_is_of_no_kind():
    with pytest.raises(ValueError, match=r"BertModel is none of causal-lm, masked-lm.*AutoModelForMaskedLM"):
        kind_of(transformers.BertModel(transformers.BertConfig(**BERT)))
