"""Where generation starts, how long texts get and what fills them up, on tensors alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mainspring import generation
from mainspring.errors import OptionError
from mainspring.generation import Limit

I = generation.IGNORED  # noqa: E741 - as short as the numbers beside it
PAD = 0


def tensor(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_a_prompt_ends_before_the_first_label_at_the_right_edge() -> None:
    batch = {
        "input_ids": tensor([5, 6, 7, 8, PAD], [5, 9, 9, 9, 9]),
        "attention_mask": tensor([1, 1, 1, 1, 0], [1, 1, 1, 1, 1]),
        "labels": tensor([I, I, I, 8, I], [I, 9, 9, I, 9]),
        "token_type_ids": tensor([1, 2, 3, 4, 0], [5, 6, 7, 8, 9]),
        "position_ids": tensor([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        "pixel_values": torch.zeros(2, 3),
    }
    prompts = generation.prompts_of(batch, PAD)
    assert prompts["input_ids"].tolist() == [[5, 6, 7], [PAD, PAD, 5]]
    assert prompts["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert prompts["token_type_ids"][0].tolist() == [1, 2, 3]
    assert prompts["pixel_values"].shape == (2, 3)
    assert prompts.keys().isdisjoint({"labels", "position_ids"})


def test_the_first_token_is_prompt_even_where_it_is_labelled() -> None:
    """No causal loss asks for it: labels that are the whole text leave something to start from."""
    ids = tensor([PAD, 5, 6], [7, 8, 9])
    batch = {"input_ids": ids, "attention_mask": tensor([0, 1, 1], [1, 1, 1]), "labels": ids}
    assert generation.prompts_of(batch, PAD)["input_ids"].tolist() == [[5], [7]]


@pytest.mark.parametrize("labels", [None, torch.tensor([[5, 6]]), torch.tensor([[I, 9, 8, 7, 3]])])
def test_without_labels_on_it_the_whole_text_is_prompt(labels: torch.Tensor | None) -> None:
    batch = {"input_ids": tensor([5, PAD, 6, 7, PAD]), "labels": labels}
    prompts = generation.prompts_of(batch, PAD)
    assert prompts["input_ids"].tolist() == [[5, PAD, 6, 7]], "padding inside a text is text"


@pytest.mark.parametrize("mask", [torch.int64, torch.bool])
def test_a_batch_is_left_as_it_was(mask: torch.dtype) -> None:
    batch = {"input_ids": tensor([5, 6, 7]), "attention_mask": tensor([1, 1, 1]).to(mask), "labels": tensor([I, 6, 7])}
    before = {name: value.clone() for name, value in batch.items()}
    generation.prompts_of(batch, PAD)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_only_a_repeated_prompt_is_cut_off() -> None:
    texts = tensor([5, 6, 7, 8])
    assert generation.without_prompt(texts, tensor([5, 6])).tolist() == [[7, 8]]
    assert generation.without_prompt(texts, tensor([6, 7])).tolist() == [[5, 6, 7, 8]]


def test_targets_do_not_reach_generation() -> None:
    labels = tensor([5, 6, 7])
    batch = {
        "input_ids": tensor([1, 2]),
        "labels": labels,
        "decoder_input_ids": labels,
        "decoder_attention_mask": labels,
    }
    assert generation.without_targets(batch).keys() == {"input_ids"}
    start = {**batch, "decoder_input_ids": tensor([1])}
    assert generation.without_targets(start).keys() == {"input_ids", "decoder_input_ids"}


@pytest.mark.parametrize(
    ("config", "keywords", "limit"),
    [
        ({}, {}, Limit(new=20)),
        ({"max_length": 9}, {}, Limit(total=9)),
        ({"max_length": 9, "max_new_tokens": 4}, {}, Limit(new=4)),
        ({"max_new_tokens": 4}, {"max_length": 7}, Limit(total=7)),
        ({"max_length": 9}, {"max_new_tokens": 5, "max_length": 7}, Limit(new=5)),
        ({"max_length": 9}, {"max_length": None}, Limit(total=9)),
    ],
)
def test_keywords_win_over_the_configuration_and_new_tokens_over_a_length(
    config: dict[str, int], keywords: dict[str, int], limit: Limit
) -> None:
    assert generation.limit_of(SimpleNamespace(**config), keywords) == limit


def test_a_limit_says_how_wide_texts_can_be() -> None:
    assert (Limit(new=4).width(start=3), Limit(total=4).width(start=3)) == (7, 4)


def test_a_length_in_keywords_unsets_new_tokens_that_would_win_over_it() -> None:
    config = SimpleNamespace(max_new_tokens=4, max_length=None)
    assert generation.with_limit({"max_length": 7}, config) == {"max_length": 7, "max_new_tokens": None}
    assert generation.with_limit({}, config) == {}
    assert generation.with_limit({}, SimpleNamespace()) == {"max_new_tokens": 20}


def test_padding_comes_from_the_tokenizer_then_from_the_configurations() -> None:
    def tokens(pad: int | None, end: int | list[int] | None) -> SimpleNamespace:
        return SimpleNamespace(pad_token_id=pad, eos_token_id=end)

    assert generation.pad_token(tokens(3, 4), tokens(5, 6)) == 3
    assert generation.pad_token(tokens(None, 4), tokens(5, 6)) == 4
    assert generation.pad_token(None, tokens(None, [8, 9]), tokens(7, None)) == 7
    assert generation.pad_token(None, tokens(None, [8, 9]), None) == 8
    with pytest.raises(ValueError, match="pad_token_id"):
        generation.pad_token(None, tokens(None, None))


def test_several_texts_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="num_return_sequences"):
        generation.sequences(torch.zeros(6, 4), rows=3)
    assert generation.sequences(SimpleNamespace(sequences=tensor([1])), rows=1).tolist() == [[1]]


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_a_configuration_is_an_object_its_settings_a_file_or_a_folder(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=7, num_beams=2)
    config.save_pretrained(tmp_path)
    renamed = tmp_path / "beams.json"
    (tmp_path / "generation_config.json").rename(renamed)
    config.save_pretrained(tmp_path / "folder")
    for source in (config, config.to_dict(), renamed, str(renamed), str(tmp_path / "folder")):
        loaded = generation.load_generation_config(source)
        assert (loaded.max_new_tokens, loaded.num_beams) == (7, 2)
        assert loaded is not config, "what the trainer changes is not the user's"


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "no/such/file.json", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(OptionError, match=f"^generation_config='{source}': there is no such file or folder"):
        generation.load_generation_config(source)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(OptionError, match="cannot be read"):
        generation.load_generation_config(broken)
    with pytest.raises(OptionError, match="cannot be read"):
        generation.load_generation_config(tmp_path)


def test_contradictory_settings_are_refused_with_the_reasons() -> None:
    from transformers import GenerationConfig

    with pytest.raises(OptionError, match="^generation_config='GenerationConfig': is invalid: .*early_stopping"):
        generation.load_generation_config(GenerationConfig(num_beams=1, early_stopping=True))
    with pytest.raises(OptionError, match="is a int"):
        generation.load_generation_config(5)


def test_the_hub_is_not_asked_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OptionError, match="^generation_config='someone/model': .*the hub is not asked"):
        generation.load_generation_config("someone/model")


def test_asking_the_hub_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is downloaded silently; and what does not come is an error that names the option."""
    from transformers import GenerationConfig

    asked = []

    def from_pretrained(name: str, local_files_only: bool = False) -> GenerationConfig:
        asked.append(local_files_only)
        if local_files_only or name == "someone/none":
            raise OSError("not there.")
        return GenerationConfig(max_new_tokens=7)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(GenerationConfig, "from_pretrained", from_pretrained)
    with caplog.at_level("WARNING", "mainspring"):
        assert generation.load_generation_config("someone/model").max_new_tokens == 7
    assert asked == [True, False], "the cache comes first"
    assert "asking the hub" in caplog.text
    with pytest.raises(OptionError, match=r"the hub gave none \(not there\)"):
        generation.load_generation_config("someone/none")
