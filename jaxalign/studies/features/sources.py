"""The dictionaries of a study: opened, and held against the model that they are read from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.checkpoints import Model
from jaxalign.checkpoints.dictionaries import TrainedDictionary, open_dictionary
from jaxalign.checkpoints.hub import BUNDLED, BUNDLED_NAME
from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.engine.activations import Place, check_places, place_name, width_at
from jaxalign.errors import InputError
from jaxalign.numerics.scheme import Scheme

BUNDLED_DICTIONARY = BUNDLED.parent / "dictionary"
# Where methods that choose scales by activations move scales between matrices: what is read there
# is the same up to a factor for each coordinate, which is no damage.
MOVED = ("q", "k", "v", "z", "mlp_in", "mlp_gate", "mlp_up", "mlp_hidden", "final_norm")
MOVING = ("awq", "smoothquant")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dictionary at its place.

    Attributes:
        trained: with what its files say.
        place: point and step.
        notes: what a reader of the result has to know of it.
    """

    trained: TrainedDictionary
    place: Place
    notes: tuple[str, ...] = ()

    @property
    def dictionary(self) -> Dictionary:
        """Its arrays."""
        return self.trained.dictionary

    @property
    def name(self) -> str:
        """Its place and the beginning of its hash: ``resid 4 (1a2b3c4d)``."""
        return f"{place_name(self.place)} ({self.trained.facts.sha256[:8]})"


def open_sources(model: Model, names: Sequence[str], mismatch: str) -> list[Source]:
    """Every dictionary that is named, checked.

    Args:
        model: that it is read from.
        names: folders, or folders of repositories; none for the bundled dictionary.
        mismatch: "refuse" or "allow" dictionaries of another model.

    Raises:
        InputError: none where the model has no bundled one, or one that does not fit the model.
    """
    if not names:
        if model.source.model != BUNDLED_NAME:
            raise InputError(
                f"--sae names no dictionary of {model.source.model}",
                "give one, or train one: jaxalign train-sae --model "
                f"{model.source.model} --layers 0",
            )
        names = [str(BUNDLED_DICTIONARY)]
    sources = [_checked(open_dictionary(name), name, model, mismatch) for name in names]
    found = [source.name for source in sources]
    if twice := [name for name in found if found.count(name) > 1]:
        raise InputError(f"--sae names {twice[0]} in two folders", "name each dictionary once")
    return sources


def _checked(trained: TrainedDictionary, name: str, model: Model, mismatch: str) -> Source:
    facts, dictionary = trained.facts, trained.dictionary
    if facts.point is None:
        raise InputError(
            f"{name} does not say where in the model it belongs",
            "write hook_name into the metadata of its cfg.json: blocks.3.hook_resid_post",
        )
    place = facts.point, facts.step
    check_places([place], model.config)
    if facts.reads is not None:
        raise InputError(
            f"{name} is a transcoder, from {facts.reads} to {facts.point}",
            "give a sparse autoencoder, which reads what it stands for",
        )
    if facts.behind_post_norm and model.config.post_norms:
        raise InputError(
            f"{name} stands for {facts.point} behind its norm, where {model.source.model} is not "
            "read",
            "give a dictionary of the residual stream",
        )
    width = width_at(facts.point, model.config)
    if dictionary.width != width:
        raise InputError(
            f"{name} has width {dictionary.width}, and {model.source.model} has {width} at "
            f"{facts.site}",
            "give a dictionary of this model",
        )
    notes = (
        *(f"{name}: {note}" for note in facts.notes),
        *_other_model(trained, name, model, mismatch),
    )
    return Source(trained=trained, place=place, notes=notes)


def _other_model(
    trained: TrainedDictionary, name: str, model: Model, mismatch: str
) -> tuple[str, ...]:
    """Refuse a dictionary of another model, or say that it is one."""
    facts = trained.facts
    if facts.weights_sha256 is not None:
        same, said = facts.weights_sha256 == model.weights_sha256, facts.model or "other weights"
    elif facts.model is not None:
        same, said = _bare(facts.model) == _bare(model.source.model), facts.model
        if not same and Path(model.source.model).exists():
            return (f"{name} was trained on {said}; whether the folder has it is not known",)
    else:
        return (f"{name} does not say which model it was trained on",)
    if same:
        return ()
    if mismatch == "refuse":
        raise InputError(
            f"{name} was trained on {said}, and {model.source.model} has other weights",
            "give a dictionary of this model, or --sae-model-mismatch allow",
        )
    return (f"{name} was trained on {said}, another model",)


def _bare(name: str) -> str:
    """``pythia-70m`` of ``EleutherAI/pythia-70m``."""
    return name.rstrip("/").rpartition("/")[2].lower()


def check_basis(points: Iterable[str], schemes: Iterable[Scheme]) -> None:
    """Refuse a point whose coordinates a scheme rescales, which would look like damage.

    Args:
        points: that are read.
        schemes: that are compared with f32.

    Raises:
        InputError: names point and scheme.
    """
    for point, scheme in itertools.product(points, schemes):
        if point in MOVED and (scheme.method in MOVING or scheme.from_file):
            raise InputError(
                f"{scheme.name} moves scales between matrices, so that {point} has other units in "
                "it than in f32",
                "read the residual stream, the MLP's or the attention's output, or leave the "
                "scheme out",
            )
