"""PreTrainedModel, the base of all networks: loading, saving, quantization and generate() under Transformers' names."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from pixtral.checkpoints.layout import Layout
from pixtral.checkpoints.load import LoadedFrom, load_model
from pixtral.checkpoints.placement import DeviceMap, MaxMemory
from pixtral.checkpoints.save import save_model
from pixtral.configuration import Config, GenerationConfig
from pixtral.errors import ConfigError, refuse_unknown
from pixtral.layers.stack import LayerStack
from pixtral.quantization import QuantizationArguments
from pixtral.quantization.base import Quantizer
from pixtral.quantization.bitsandbytes import BitsAndBytesQuantizer

T = TypeVar("T", bound="PreTrainedModel")


class PreTrainedModel(nn.Module):
    """Base of the networks.

    Attributes:
        architecture: name in config.json; None where there is no checkpoint format.
        config: of the network.
        loaded_from: which files were read.
        quantizer: how weights are quantized, None in full precision.
        main_device: where a model computes whose weights are elsewhere.
    """

    architecture: ClassVar[str | None] = None
    config_class: type[Any]
    config: Any
    initializer_range: float
    quantizer: Quantizer | None = None
    loaded_from: LoadedFrom | None = None
    name_or_path: str = ""
    main_device: torch.device | None = None
    supports_gradient_checkpointing = True
    # blocks that add their input to their output, and so lie on one device
    _no_split_modules: ClassVar[tuple[str, ...]] = ("MistralDecoderLayer", "PixtralAttentionLayer")

    def __init__(self, config: Config) -> None:
        if not isinstance(config, self.config_class):
            wanted = f"pixtral.{self.config_class.__name__}"
            raise ConfigError(
                f"{type(self).__name__} got a {type(config).__module__}.{type(config).__name__}, expected a {wanted}; "
                f"make one with {wanted}.from_dict(...) or from_pretrained(...)"
            )
        super().__init__()
        self.config = config
        self.initializer_range = getattr(config, "text_config", config).initializer_range

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Config | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: DeviceMap = None,
        max_memory: MaxMemory = None,
        offload_folder: str | os.PathLike[str] | None = None,
        offload_buffers: bool = False,
        offload_state_dict: bool | None = None,
        attn_implementation: str | None = None,
        quantization: str | None = None,
        quantize_vision: bool = False,
        activations: str | None = None,
        quantization_config: object = None,
        layout: Layout = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        progress: bool = True,
        low_cpu_mem_usage: bool = True,
        use_safetensors: bool | None = None,
        trust_remote_code: bool = False,
        **unknown: object,
    ) -> T:
        """Read a model from a folder or the Hugging Face Hub, in Hugging Face's or Mistral's layout.

        Memory while loading never exceeds the model and one tensor. A vision tower or a decoder can be read out of a
        whole Pixtral; only its own tensors are read then. `model.loaded_from` says what was read.

        Args:
            pretrained_model_name_or_path: a folder, or a Hub id such as "mistralai/Pixtral-12B-2409".
            config: used instead of the checkpoint's own.
            dtype: "auto" (as stored; the default), a torch dtype, or its name. `torch_dtype` is its former name.
            device_map: a device (None: the CPU); "auto": the best single device if the model fits there, otherwise
                several; "balanced", "balanced_low_0", "sequential": several; or a dict of module names ("" for the
                rest) to devices, "cpu" and "disk". `model.hf_device_map` says what became of it.
            max_memory: what "auto" and its like may use: {0: "10GiB", "cpu": "30GiB"}; a device that is not named is
                not used. What finds no room stays on the disk.
            offload_folder: allows "auto" to leave on the disk what finds no room. What the checkpoint stores as it is
                used stays there; the rest is written here, and goes with the model.
            attn_implementation: None, "sdpa" or "eager", for programs written for Transformers; it is one and the same.
            quantization: "int4" or "int8" quantizes the decoder's weights while they are read (output layer: 8 bits);
                None leaves them as they are stored, which may be quantized.
            quantize_vision: also quantize the vision tower's and the projector's, in 8 bits.
            activations: "int8" (fast; the default) or "bf16": what goes into quantized layers.
            quantization_config: the same with every setting: a QuantizationConfig; or a BitsAndBytesConfig, for that
                library; or the dict of one.
            layout: which layout to read when a folder holds both: "auto" (Hugging Face's), "hf", "mistral".
            revision, token, cache_dir, local_files_only, force_download: for the Hub.
            progress: show a bar, if stderr is a terminal.
            low_cpu_mem_usage, use_safetensors, trust_remote_code, offload_state_dict, offload_buffers: accepted for
                programs written for Transformers; memory is always spared, no code of a checkpoint is ever run, and
                there are no buffers to put on the disk.

        Raises:
            CheckpointError: nothing there, broken or missing files, weights that do not fit, too little memory.
            ConfigError: a configuration or an argument that cannot be used.
            UnknownArgument: a keyword that is none of these.
        """
        refuse_unknown(unknown, f"{cls.__name__}.from_pretrained()", _keywords(cls.from_pretrained))
        _check_arguments(config, attn_implementation, use_safetensors)
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ConfigError(f"dtype is {dtype!r} and torch_dtype, its former name, {torch_dtype!r}; give one of them")
        model = load_model(
            cls,
            pretrained_model_name_or_path,
            config=config,
            dtype=dtype if dtype is not None else torch_dtype,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
            asked=QuantizationArguments(quantization, quantize_vision, activations, quantization_config),
            layout=layout,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            progress=progress,
        )
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        assert model.loaded_from is not None
        if (model.loaded_from.folder / GenerationConfig.file_name).is_file():
            model._set_generation_config(GenerationConfig.from_folder(model.loaded_from.folder))
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        layout: str = "hf",
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **unknown: object,
    ) -> tuple[Path, ...]:
        """Write the model to a folder; see `checkpoints.save.save_model`.

        Args:
            save_directory: created if needed; a failure leaves it as it was.
            layout: "hf" (read by Transformers too) or "mistral".
            max_shard_size: bytes, or "5GB"; above it the weights are split over several files.
            safe_serialization: must be True: pickles are not written.

        Returns:
            The files written.
        """
        refuse_unknown(unknown, f"{type(self).__name__}.save_pretrained()", _keywords(self.save_pretrained))
        if not safe_serialization:
            raise ConfigError("safe_serialization=False asks for a pickle; only safetensors are written")
        return save_model(self, save_directory, layout=layout, max_shard_size=max_shard_size)

    def _set_generation_config(self, config: GenerationConfig) -> None:
        """Take defaults of generation; a model that does not generate has none."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first parameter, or where it is brought when it waits on the disk."""
        device = next(self.parameters()).device
        return self.main_device if device.type == "meta" and self.main_device is not None else device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters, tied ones once; weights in fewer bits count as what they stand for."""
        count = sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)
        return count if only_trainable else count + sum(_num_quantized(module) for module in self.modules())

    def get_memory_footprint(self) -> int:
        """Bytes of the parameters and of quantized weights, tied ones once."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer, None where there is none; accelerate asks every model."""
        return None

    def init_weights(self, *parts: nn.Module) -> None:
        """Normal weights of the configuration's `initializer_range`, zero biases; of all modules, or of some parts."""
        for part in parts or (self,):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                    nn.init.normal_(module.weight, std=self.initializer_range)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool] | None = None) -> None:
        """Recompute each layer in the backward pass of training, instead of keeping its activations.

        Args:
            gradient_checkpointing_kwargs: as Transformers takes it; `{"use_reentrant": False}` is what happens anyway.

        Raises:
            ConfigError: other arguments of checkpointing.
        """
        if (gradient_checkpointing_kwargs or {"use_reentrant": False}) != {"use_reentrant": False}:
            raise ConfigError(
                f"found gradient_checkpointing_kwargs {gradient_checkpointing_kwargs}; layers are recomputed without "
                "re-entering autograd: leave it out, or pass {'use_reentrant': False}"
            )
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(m.gradient_checkpointing for m in self.modules() if isinstance(m, LayerStack))

    def _set_checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, LayerStack):
                module.gradient_checkpointing = on

    @property
    def quantization_config(self) -> object:
        """How the weights are quantized: a QuantizationConfig, a BitsAndBytesConfig, or None."""
        return None if self.quantizer is None else self.quantizer.config

    @property
    def is_quantized(self) -> bool:
        """Whether layers hold fewer bits."""
        return self.quantizer is not None

    @property
    def quantization_method(self) -> str | None:
        """The `quant_method` of config.json: "bitsandbytes", "pixtral", or None."""
        return None if self.quantizer is None else self.quantizer.method

    @property
    def hf_quantizer(self) -> BitsAndBytesQuantizer | None:
        """What peft and trainers ask about a model that bitsandbytes quantized."""
        return self.quantizer if isinstance(self.quantizer, BitsAndBytesQuantizer) else None

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 8 bits."""
        return self.hf_quantizer is not None and self.hf_quantizer.config.load_in_8bit

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 4 bits."""
        return self.hf_quantizer is not None and self.hf_quantizer.config.load_in_4bit

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """As of nn.Module.

        Raises:
            ConfigError: a dtype, for a model that bitsandbytes quantized.
        """
        if torch._C._nn._parse_to(*args, **kwargs)[1] is not None:
            self._refuse_cast("to(dtype)")
        return super().to(*args, **kwargs)

    def half(self: T) -> T:
        """As of nn.Module, and refused like `to(dtype)`."""
        self._refuse_cast("half()")
        return super().half()

    def float(self: T) -> T:
        """As of nn.Module, and refused like `to(dtype)`."""
        self._refuse_cast("float()")
        return super().float()

    def _refuse_cast(self, call: str) -> None:
        if self.hf_quantizer is not None:
            raise ConfigError(
                f"{call} would change what a model quantized by bitsandbytes computes in; pass dtype to from_pretrained"
            )


def _num_quantized(module: nn.Module) -> int:
    """How many weights a linear layer stands for beyond the numbers in its `weight`; 0 unless it is quantized."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not isinstance(rows, int) or not isinstance(columns, int):
        return 0
    weight = getattr(module, "weight", None)
    return rows * columns - (weight.numel() if isinstance(weight, Tensor) else 0)


def _keywords(function: Callable[..., object]) -> list[str]:
    """The names of a function's keyword arguments."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _check_arguments(config: object, attn_implementation: str | None, use_safetensors: bool | None) -> None:
    """Refuse what Transformers would take and this package does otherwise."""
    if config is not None and not isinstance(config, Config):
        raise ConfigError(f"config is a {type(config).__name__}; expected a LlavaConfig or one of its parts")
    if attn_implementation not in (None, "sdpa", "eager"):
        raise ConfigError(
            f"attn_implementation is {attn_implementation!r}; leave it out, or say 'sdpa' or 'eager': there is one "
            "implementation, in plain PyTorch"
        )
    if use_safetensors is False:
        raise ConfigError("use_safetensors=False asks for pickles, which can run code when read; leave it out")
