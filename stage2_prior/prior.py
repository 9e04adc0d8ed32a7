"""The prior: what all kinds have in common, checks of codes and classes, likelihood, and folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from foundation.arguments import as_codes, as_path, require_type
from foundation.codes.spec import CodeSpec, code_positions
from foundation.config import from_dict, require, to_dict
from foundation.errors import ConfigError, DataError
from foundation.storage.serialization import load_model_folder, load_weights, save_model_folder
from stage2_prior.config import LATENTS_KIND, PLUGINS, PriorConfig
from stage2_prior.head_loss import HeadLoss, Terms, head_loss, nll_per_code
from stage2_prior.likelihood import nll_in_order
from stage2_prior.orders import MASKED
from stage2_prior.positions import PositionTables

MODEL_TYPE = "tessera_prior"


class Programs(dict[Any, Any]):
    """What sampling has compiled for a model. Copies of the model begin without."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """Empty."""
        return Programs()

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty after pickling."""
        return Programs, ()


class PriorModel(nn.Module):
    """A distribution of the codes of images, as a plain torch module.

    ``PriorModel(config, spec)`` makes the kind of prior that ``config.block`` names.

    Args:
        config: size and options.
        spec: of the codes; the prior serves no other.

    Attributes:
        n_codes: T.
        n_steps: predictions that make an image: T, or one for each position of a latent.
        vocab_size: V, the size of the largest codebook, and ``extra_codes``.
        n_classes: 0 for an unconditional prior.
        n_grids: grids that an image's codes may form.
        code_embedding: vectors of the codes.
        position_tables: positions of the inputs and of what they predict.
        blocks: the layers, as training shards and compiles them.
        head: from hidden states to logits.
        is_masked: whether it predicts codes from any others, which it takes in all at once.
        is_cached: whether it takes in codes one after another, over a key-value cache.
        gradient_checkpointing: keep only the inputs of the blocks in training and recompute the rest in the backward
            pass: less memory, about a third more time. The name is the one that transformers looks for.
    """

    head: nn.Linear
    blocks: nn.ModuleList
    code_embedding: nn.Embedding
    position_tables: PositionTables
    is_masked: bool
    is_cached: bool

    def __new__(cls, config: PriorConfig | None = None, *given: Any, **named: Any) -> Self:
        """The kind of the configuration; without one, as copies are made, this class."""
        kind: type = cls
        if cls is PriorModel and isinstance(config, PriorConfig):
            spec = given[0] if given else named.get("spec")
            latents = isinstance(spec, CodeSpec) and spec.latents
            kind = _class_named(LATENTS_KIND) if latents else _class_named(config.kind, config.block)
        made: Self = super().__new__(kind)
        return made

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__()
        require_type("config", config, PriorConfig)
        require_type("spec", spec, CodeSpec)
        self.config, self.spec = config, spec
        self.decodes_compiled, self.programs, self.gradient_checkpointing = False, Programs(), False
        self.adapter: Any = None  # peft's settings, see lora.py
        self.vocab_size, self.n_codes = spec.codebook_size + config.extra_codes, spec.n_codes
        self.n_classes = len(spec.class_names) if config.class_conditional else 0
        self.n_grids, self.n_steps = spec.n_grids, spec.n_codes // (spec.levels[0].depth if spec.latents else 1)
        sizes_T = code_positions(spec).codebook_size_T + config.extra_codes
        self.sizes_T, self._unequal = sizes_T, len(set(sizes_T.tolist())) > 1
        self._sizes_on: dict[torch.device, torch.Tensor] = {}

    @property
    def null_class(self) -> int:
        """The label that means "no class"; every label of an unconditional prior."""
        return self.n_classes

    def forward(self, tokens_BT: Any, labels_B: Any = None, orders_BT: Any = None, grids_B: Any = None) -> torch.Tensor:
        """Teacher-forced logits.

        Args:
            tokens_BT: the T codes of each image, or its first ones, of any integer type, or the tokenizer's grids of
                them; the last code is never an input. Of a masked prior all T, ``MASKED`` where one is not known.
            labels_B: classes, ``null_class`` for none; None is no class for all.
            orders_BT: a permutation of the T positions for each image; None for raster order. The codes themselves
                stay in raster order.
            grids_B: the grid of each image, an index into ``spec.grids``, or one for all; None takes the grid that the
                codes have the shape of, else the first.

        Returns:
            (B, T, V): entry t is the distribution of code t given the class and codes 0..t-1; -inf beyond the codebook
            of position t, where it has fewer than V codes. V is the size of the largest, and ``extra_codes``. With
            orders, entry i is the distribution of code ``orders_BT[b, i]`` given the class and codes
            ``orders_BT[b, :i]``. Of a masked prior, entry t is the distribution of code t given the class and all known
            codes.

        Raises:
            DataError: other shapes, more than T codes, orders that are no permutations, or (checked on a CPU only,
                elsewhere it would wait for the device) codes and classes that do not exist.
            ConfigError: orders given to a prior of one order, or one that needs none.
        """
        given = tokens_BT
        tokens_BT, labels_B = self.checked(given, labels_B)
        grids_B = self.checked_grids(given, grids_B)
        orders_BT = None if orders_BT is None else as_codes(orders_BT, "orders_BT", tokens_BT.device)
        logits_BTV = self.head(self.hidden(tokens_BT, labels_B, orders_BT, grids_B))
        size_N = self.sizes(tokens_BT, orders_BT)
        if size_N is None:
            return logits_BTV
        beyond_BTV = torch.arange(self.vocab_size, device=size_N.device) >= size_N.view(*tokens_BT.shape, 1)
        return logits_BTV.masked_fill(beyond_BTV, -torch.inf)

    def hidden(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm, (B, T, E); arguments as of ``hidden_states``."""
        return self.hidden_states(tokens_BT, labels_B, orders_BT, grids_B)[0]

    def prepare(self, codes_NT: np.ndarray) -> None:
        """Take what a new prior needs to know of its training codes, before training."""

    def in_steps(self, codes_BT: torch.Tensor) -> torch.Tensor:
        """Codes as steps take them: (B, T) => the same, or (B, S, C) of latents."""
        return codes_BT

    def orders_in_steps(self, orders_BT: torch.Tensor) -> torch.Tensor:
        """Orders of codes => of steps."""
        return orders_BT

    def nll_of(self, hidden_NE: torch.Tensor, codes: torch.Tensor, size_N: torch.Tensor | None) -> torch.Tensor:
        """-ln p of what each step predicts, (N,) float32, without gradients.

        Args:
            hidden_NE: from ``hidden``.
            codes: (N,), as of ``in_steps``.
            size_N: from ``sizes``.
        """
        return nll_per_code(hidden_NE, self.head.weight, codes, size_N)

    def loss_of(
        self,
        hidden_NE: torch.Tensor,
        codes: torch.Tensor,
        size_N: torch.Tensor | None,
        terms: Terms,
        trained_NE: torch.Tensor | None = None,
    ) -> HeadLoss:
        """The loss of what each step predicts; see ``head_loss``."""
        return head_loss(hidden_NE, self.head.weight, codes, size_N, *terms, trained_NE=trained_NE)

    def hidden_states(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        after: Collection[int] = (),
        shares_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Inputs of the head, and states after some blocks.

        Args:
            tokens_BT, labels_B, orders_BT, grids_B: as of ``forward``, int64, of which the length alone is checked;
                ``grids_B`` has an entry for each image if there are several grids, else it is None.
            after: numbers of blocks, from 1.
            shares_B: of a prior with ``guidance_input``: 1 / guidance scale of each image, above 0 to 1; None is 1.

        Returns:
            (B, T, E); and the same by block for those in ``after``.
        """
        raise NotImplementedError

    def within_codebook(self) -> PriorModel:
        """This prior without its ``extra_codes``, so that every code belongs to an image."""
        return self

    def zero_residual_outputs(self) -> None:
        """Let every block be the identity, as training may begin.

        Raises:
            ConfigError: the class has no such start.
        """
        expected = f"scaled where block is {self.config.block}, which has no other start"
        require(False, "prior.training.residual_init", "zero", expected)

    @torch.no_grad()
    def nll(
        self, tokens_BT: Any, labels_B: Any = None, grids_B: Any = None, *, order: str = "raster", seed: int = 0
    ) -> torch.Tensor:
        """Negative log-likelihood of each code given its class and the codes before it.

        Args:
            tokens_BT, labels_B, grids_B: as of ``forward``.
            order: in which codes come: raster; of a prior of order any or masked also halton, or random, which is one
                order for each image. A masked prior takes a pass for each code, but for random: there it takes one
                pass, whose result is right on average alone (see ``likelihood.py``).
            seed: of random orders.

        Returns:
            (B, T) float32, nats, each at its code's position. The logits of all B * T codes never exist at once.

        Raises:
            DataError: as ``forward``.
            ConfigError: an order that the prior does not know.
        """
        given = tokens_BT
        tokens_BT, labels_B = self.checked(given, labels_B)
        return nll_in_order(self, tokens_BT, labels_B, self.checked_grids(given, grids_B), order, seed)

    def compile_blocks(self) -> None:
        """Compile each block with ``torch.compile``; the names of parameters stay as they are."""
        for block in self.blocks:
            block.compile()

    def compile_decoding(self) -> None:
        """Sample codes with a compiled step from now on: faster on a GPU, tens of seconds for the first image."""
        self.decodes_compiled = True

    def checked(
        self, tokens_BT: Any, labels_B: Any = None, *, check_range: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and classes as ``hidden`` takes them: (B, T) and (B,), int64, on the model's device.

        Args:
            tokens_BT, labels_B: as of ``forward``.
            check_range: whether values are checked, which waits for a GPU; None does so on a CPU.

        Raises:
            DataError: see ``forward``.
        """
        tokens_BT = self.as_sequences(tokens_BT, "tokens_BT")
        n_images, device = len(tokens_BT), tokens_BT.device
        if labels_B is None:
            labels_B = torch.full((n_images,), self.null_class, device=device)
        labels_B = as_codes(labels_B, "labels_B", device)
        shape, expected = tuple(labels_B.shape), f"({n_images},), a class for each image"
        problem = "are not one for each image"
        DataError.unless(shape == (n_images,), problem, field="labels_B", found=shape, expected=expected)
        if device.type == "cpu" if check_range is None else check_range:
            self.require_codes(tokens_BT, "tokens_BT")
            low, high = (int(each) for each in labels_B.aminmax()) if n_images else (0, 0)
            found, expected = f"{low}..{high}", f"0..{self.null_class}, of which {self.null_class} is no class"
            inside = 0 <= low <= high <= self.null_class
            DataError.unless(inside, "no such class", field="labels_B", found=found, expected=expected)
        return tokens_BT, labels_B

    def checked_grids(self, codes: Any, grids_B: Any) -> torch.Tensor | None:
        """The grid of each image as ``hidden`` takes it: (B,) int64 on the model's device; None where there is one.

        Args:
            codes: as of ``forward``.
            grids_B: as of ``forward``.

        Raises:
            DataError: a grid that does not exist, or another number of grids than images.
        """
        device, n_images = self.head.weight.device, len(codes)
        if self.n_grids == 1 and (grids_B is None or (isinstance(grids_B, int) and grids_B == 0)):
            return None
        if grids_B is None:
            grids_B = self.spec.find_grid(getattr(codes, "shape", ())[1:]) or 0
        whole = isinstance(grids_B, int)
        grids_B = torch.full((n_images,), grids_B, device=device) if whole else as_codes(grids_B, "grids_B", device)
        shape, expected = tuple(grids_B.shape), f"({n_images},), a grid for each image"
        DataError.unless(
            shape == (n_images,), "are not one for each image", field="grids_B", found=shape, expected=expected
        )
        if device.type == "cpu" and n_images:
            low, high = (int(each) for each in grids_B.aminmax())
            inside, expected = 0 <= low <= high < self.n_grids, f"0..{self.n_grids - 1}"
            DataError.unless(inside, "no such grid", field="grids_B", found=f"{low}..{high}", expected=expected)
        return grids_B if self.n_grids > 1 else None

    def as_sequences(self, codes: Any, field: str) -> torch.Tensor:
        """Codes, also as the tokenizer's grids => (B, T) int64 on the model's device, T up to ``n_codes``.

        Raises:
            DataError: no codes, or another shape.
        """
        given = as_codes(codes, field, self.head.weight.device)
        if tuple(given.shape[1:]) == self.spec.shape or self.spec.find_grid(given.shape[1:]) is not None:
            given = given.flatten(1)
        sound, expected = given.ndim == 2 and given.shape[1] > 0, f"(B, {self.n_codes})"
        problem, found = "are no sequences of codes", tuple(given.shape)
        DataError.unless(sound, problem, field=field, found=found, expected=expected)
        require_length(self.n_codes, given.shape[1], field)
        return given

    def require_codes(self, tokens_BT: torch.Tensor, field: str) -> None:
        """Refuse codes that do not exist; a masked prior also takes ``MASKED``. Waits for the device.

        Raises:
            DataError: naming the first one.
        """
        size_T = self.sizes_on(tokens_BT.device)[: tokens_BT.shape[1]]
        least = MASKED if self.config.order == "masked" else 0
        wrong_BT = (tokens_BT < least) | (tokens_BT >= size_T)
        if bool(wrong_BT.any()):
            image, t = (int(each) for each in wrong_BT.nonzero()[0])
            found, expected = int(tokens_BT[image, t]), f"0..{int(size_T[t]) - 1}"
            raise DataError("no such code", field=f"{field}[{image}, {t}]", found=found, expected=expected)

    def sizes(self, tokens_BT: torch.Tensor, orders_BT: torch.Tensor | None = None) -> torch.Tensor | None:
        """(B * T,) int64: for each code, the size of its position's codebook; None where all have V codes.

        Args:
            tokens_BT: the T codes, or the first ones.
            orders_BT: the order in which they are predicted; None for raster order.
        """
        if not self._unequal:
            return None
        size_T = self.sizes_on(tokens_BT.device)
        if orders_BT is not None:
            return size_T[orders_BT].flatten()
        return size_T[: tokens_BT.shape[1]].expand_as(tokens_BT).flatten()

    def sizes_on(self, device: torch.device) -> torch.Tensor:
        """(T,) int64, the size of each position's codebook, on a device."""
        if device not in self._sizes_on:
            with torch.inference_mode(False):
                self._sizes_on[device] = torch.from_numpy(self.sizes_T).to(device)
        return self._sizes_on[device]

    def save(self, folder: Path) -> None:
        """Fill an empty folder that ``load`` and ``Prior.from_pretrained`` open."""
        settings = {"prior": to_dict(self.config), "code_spec": to_dict(self.spec)}
        save_model_folder(folder, self, MODEL_TYPE, "Prior", settings)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a folder that ``save`` filled; the model is in evaluation mode.

        Raises:
            CheckpointError: the folder is missing, damaged or not a prior.
        """
        settings, tensors = load_model_folder(as_path(folder, "folder"), MODEL_TYPE, ("prior", "code_spec"))
        model = cls.from_settings(settings)
        load_weights(model, tensors, str(folder))
        return model.eval()

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build from the ``prior`` and ``code_spec`` entries of a ``config.json``; weights are random."""
        spec = from_dict(CodeSpec, settings["code_spec"], "code_spec")
        return cls(PriorConfig.saved(settings["prior"], "prior"), spec)


def _class_named(name: str, block: str = "") -> type:
    """The class of priors of a dotted name; of another package's ``block``.

    Raises:
        ConfigError: it cannot be imported, or is no ``PriorModel``.
    """
    where, fix = f"{PLUGINS}: {block}", "update its package, or uninstall it"
    try:
        kind = resolve_name(name)
    except Exception as error:
        raise ConfigError("a plug-in cannot be imported", field=where, found=repr(error), fix=fix) from error
    if not (isinstance(kind, type) and issubclass(kind, PriorModel)):
        raise ConfigError("is no class of priors", field=where, found=name, expected="a PriorModel", fix=fix)
    return kind


def require_length(n_codes: int, length: int, field: str = "tokens_BT") -> None:
    """Raise ``DataError`` for a sequence longer than an image's codes."""
    if length > n_codes:
        raise DataError("more codes than an image has", field=field, found=length, expected=f"up to {n_codes}")
