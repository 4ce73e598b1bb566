"""MAW in the encoder of a task model: its folder would lose MAW, or the encoder, so that it is not written."""

from __future__ import annotations

import pytest
import torch
from families import TOKENS, attach, build, hidden
from sentence_transformers import CrossEncoder, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import maw
from maw.retrieval.models import packaged_encoder

HEADS = {"classification": BertForSequenceClassification, "masked language": BertForMaskedLM}
REFUSAL = r"holds MAW in .*cannot be saved with it yet.*attachment\.model\.save_pretrained.*maw\.detach"


def with_head(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}
    return HEADS[kind](BertConfig(**sizes, num_labels=1)).eval()


def in_place(model):
    """As MAW's own message said once."""
    attach(model.bert)


def put_there(model):
    model.bert = attach(model.bert)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("change", [in_place, put_there])
def test_a_task_model_with_maw_is_not_saved(change, kind, tmp_path):
    model = with_head(kind)
    plain = model(TOKENS).logits
    change(model)
    torch.testing.assert_close(model(TOKENS).logits, plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(maw.MAWError, match=REFUSAL):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_the_message_advises_keeps_the_model(tmp_path):
    model = with_head("classification")
    attached = attach(model.bert)
    attached.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(hidden(loaded.eval()), hidden(model.bert))
    maw.detach(attached)
    model.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.eval()(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("kind", HEADS)
def test_sentence_transformers_refuses_too(kind, tmp_path):
    with_head(kind).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(packaged_encoder()).save_pretrained(tmp_path / "plain")
    if kind == "classification":
        model = CrossEncoder(str(tmp_path / "plain"), device="cpu")
    else:
        masked = Transformer(str(tmp_path / "plain"), transformer_task="fill-mask")
        model = SparseEncoder(modules=[masked, SpladePooling("max")], device="cpu")
    model.save(str(tmp_path / "again"))
    in_place(model[0].model)
    with pytest.raises(maw.MAWError, match=REFUSAL):
        model.save(str(tmp_path / "lost"))
    assert not list((tmp_path / "lost").rglob("*.safetensors"))


def test_a_trainers_checkpoint_is_refused(tmp_path):
    model = with_head("classification")
    in_place(model)
    arguments = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    rows = [{"input_ids": row, "labels": torch.tensor([1.0])} for row in TOKENS]
    with pytest.raises(maw.MAWError, match=REFUSAL):
        Trainer(model, arguments, train_dataset=rows).train()


def test_attaching_to_a_task_model_says_what_is_not_kept():
    for kind in HEADS:
        with pytest.raises(maw.MAWError, match=r"task head.*cannot be saved"):
            maw.attach(with_head(kind))


def test_an_encoder_without_maw_is_saved_as_ever(tmp_path):
    host = build("bert")
    attached = attach(host)
    with pytest.raises(maw.MAWError, match=r"attachment\.model\.save_pretrained"):
        host.save_pretrained(tmp_path)
    maw.detach(attached)
    host.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), hidden(host))
