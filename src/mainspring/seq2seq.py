"""`Seq2SeqTrainer`: a Trainer whose evaluations generate text."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from mainspring import generation, model as models
from mainspring.metrics import PredictionOutput, nested_detach
from mainspring.trainer import Trainer, _overrides

if TYPE_CHECKING:
    from torch import Tensor, nn

_NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})


class Seq2SeqTrainer(Trainer):
    """A `Trainer` whose predictions are generated texts, where `predict_with_generate` is set.

    Evaluations then run `model.generate` on each batch, beside the forward pass that gives the loss. Predictions are
    token ids, filled up to one width with the padding token: `-100` is never among them. Encoder-decoder models
    generate from the encoder's inputs. Decoder-only ones generate from the prompt, which is what stands before the
    first label; labels are never shown to them, and predictions hold the answer alone.

    Nothing is generated where nobody reads it: in `evaluate` without `compute_metrics`, or with
    `prediction_loss_only`.
    """

    _generates = True
    _asked: Mapping[str, Any] = _NO_KEYWORDS  # keywords of the evaluation that is running
    _gen_kwargs: Mapping[str, Any] = _NO_KEYWORDS  # what `generate` is given: these, completed by the options

    # ---- construction ----

    def _inspect_model(self) -> None:
        super()._inspect_model()
        source = self._option("generation_config")
        if source is not None:
            config = self.load_generation_config(source)
            self._generation.take_special_tokens(config, getattr(self.model, "generation_config", None))
            self.model.generation_config = config
        if self._option("predict_with_generate") and not callable(getattr(self.model, "generate", None)):
            raise ValueError(
                f"predict_with_generate=True: {type(self.model).__name__} has no method generate; give it one, or "
                "leave the option out"
            )

    @functools.cached_property
    def _generation(self) -> generation.Exact | generation.AsTheReference:
        return generation.Exact() if self._own.exact_generation else generation.AsTheReference()

    def _option(self, name: str) -> Any:
        """A generation option; None where the arguments are those of a plain Trainer."""
        return getattr(self.args, name, None)

    @staticmethod
    def load_generation_config(gen_config_arg: Any) -> Any:
        """The checked `GenerationConfig` that an object, a mapping, a file, a folder or a name on the hub stands for.

        Raises:
            OptionError: There is none, or its settings contradict each other.
        """
        return generation.load_generation_config(gen_config_arg)

    # ---- evaluation and prediction ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does.

        Args:
            eval_dataset: A data set, a mapping of names to data sets, or a name; default: the trainer's.
            ignore_keys: Keys of the model's output to leave out of the predictions.
            metric_key_prefix: Prefix of every metric's name.
            gen_kwargs: Keywords of `generate`; they win over the options. For a mapping they hold in all data sets.
        """
        with self._generating_with(gen_kwargs):
            return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        *,
        output_file: str | os.PathLike[str] | None = None,
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """Predict as `Trainer.predict` does, with the same arguments.

        Args:
            test_dataset: What to predict for.
            ignore_keys: Keys of the model's output to leave out of the predictions.
            metric_key_prefix: Prefix of every metric's name.
            output_file: File that predictions and labels are written to.
            gen_kwargs: Keywords of `generate`; they win over the options.
        """
        with self._generating_with(gen_kwargs):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix, output_file=output_file)

    @contextlib.contextmanager
    def _generating_with(self, gen_kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Evaluations inside generate with these keywords; one inside another keeps the outer one's too."""
        former = self._asked, self._gen_kwargs, self.gather_function
        self._asked = {**self._asked, **gen_kwargs}
        self._gen_kwargs = self._completed(self._asked)
        self.gather_function = self._generation.gatherer(self.accelerator, self.gather_function)
        try:
            yield
        finally:
            self._asked, self._gen_kwargs, self.gather_function = former

    def _completed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of `generate` with the options for what they leave open."""
        completed = dict(asked)
        longest, beams = self._option("generation_max_length"), self._option("generation_num_beams")
        lengths = (completed.get("max_length"), completed.get("max_new_tokens"))
        if longest is not None and lengths == (None, None):
            completed["max_length"] = longest
        if beams is not None and completed.get("num_beams") is None:
            completed["num_beams"] = beams
        return completed

    def _loss_copies(self, held: int) -> int:
        return self._generation.counted(super()._loss_copies(held), full=int(self.args.eval_batch_size))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Any, Any]:
        """`(loss, texts, labels)` of one batch; each may be None."""
        if prediction_loss_only or not self._option("predict_with_generate"):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = nested_detach(inputs.get("labels"))
        encoded = self._encoded_once(inputs)
        # A beam search spreads what it is given over its beams, in place: it has a copy of its own.
        spread = {name: copy.copy(value) for name, value in encoded.items()}
        texts, width = self._generate({**inputs, **spread}, gen_kwargs or self._gen_kwargs)
        loss = None
        if self._generation.has_loss(self.model, inputs):
            with torch.no_grad():
                loss, _ = self._evaluated(model, {**inputs, **encoded})
        if labels is not None:
            width = self._generation.width_of_labels(self.model, labels, width)
            labels = self._pad_tensors_to_max_len(labels, width)
        return loss, texts, labels

    # ---- generation ----

    def _generate(self, inputs: dict[str, Any], gen_kwargs: Mapping[str, Any]) -> tuple[Tensor, int]:
        """The texts that the model generates for a batch, and the width that they were filled up to."""
        gen_kwargs = self._with_sharding(self._completed(gen_kwargs))
        with self._engine.generating(self.model):
            texts, width = self._generation.texts(self.model, inputs, gen_kwargs, self._pad_token)
        return self._pad_tensors_to_max_len(texts, width), width

    def _with_sharding(self, gen_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """With parameters in pieces, every process goes on as long as any: each gathers them for all."""
        if "synced_gpus" in gen_kwargs or not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return dict(gen_kwargs)
        return {**gen_kwargs, "synced_gpus": True}

    def _encoded_once(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The encoder's outputs, for generation and loss alike; nothing where each had better compute its own.

        Under autocast the two passes see the encoder in different precisions; sharded, compiled and split models are
        entered by their own doors only; and a loss of the user's may read what it likes.
        """
        plain = self.accelerator.mixed_precision == "no" and not self.args.torch_compile and not self.is_model_parallel
        whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        accepted = models.forward_parameters(self.model)
        alone = _overrides(self, "compute_loss") or inputs.get("labels") is None
        if not (plain and whole) or alone or generation.is_decoder_only(self.model):
            return {}
        if not hasattr(self.model, "get_encoder") or not generation.can_reuse_encoder(inputs, accepted):
            return {}
        names = [name for name in ("input_ids", "attention_mask") if name in inputs]
        with torch.no_grad():
            outputs = self.model.get_encoder()(**{name: inputs[name] for name in names}, return_dict=True)
        return {"encoder_outputs": outputs}

    # ---- padding ----

    def _pad_tensors_to_max_len(self, tensor: Tensor, max_length: int) -> Tensor:
        """`tensor` (rows, length) filled up to `max_length` with the padding token; a longer one as it is."""
        if tensor.shape[-1] >= max_length:
            return tensor
        return generation.padded(tensor, max_length, self._pad_token())

    def _pad_token(self) -> int:
        config = getattr(self.model, "config", None)
        return generation.pad_token(self.processing_class, config, getattr(self.model, "generation_config", None))
