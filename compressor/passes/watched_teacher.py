"""The teacher that `distill` watches while it trains: which of its inner states each student state learns from."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from compressor.algorithms.layer_maps import LayerMapError, kept_layers, layer_map
from compressor.passes.contract import Supply
from compressor.passes.start_from import SELF
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.ranker.vocabulary import token_places
from compressor.training.loss_settings import LayerChoice, Relations

if TYPE_CHECKING:
    from compressor.passes.distill import Distill
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.ranker import Ranker
    from compressor.training.matches import RelationMatch, StateMatch
    from compressor.training.objective import Watched


READS_ALONG_FIX = "set representations: {} and teacher_scores: stored: scores can be learned from any teacher"


def unreadable(own: RankerSpec, teacher: RankerSpec, *, same_tokens: bool) -> str:
    """Return why a teacher cannot read a ranker's rows and be watched while it does, or an empty string.

    Args:
        own, teacher: the shapes of both.
        same_tokens: whether both cut text into the same tokens.
    """
    if not isinstance(teacher.head, ClassifierHead):
        return "a bi-encoder as teacher, which never reads a pair as a whole"
    if not same_tokens:
        return "a teacher that cuts text into other tokens than the ranker"
    if own.max_length > teacher.max_length:
        return f"rows of up to {own.max_length} tokens and a teacher that reads {teacher.max_length}"
    return ""


def watch(step: Distill, ranker: Ranker, supply: Supply) -> Watched:
    """Return the recipe's teacher with what is to be matched of it, or with nothing where only its scores count.

    Raises:
        InputError: the teacher reads other tokens than the ranker, or lacks layers that the settings name.
    """
    from compressor.training.objective import Watched
    from compressor.training.projections import Projections

    teacher = supply.teacher()
    places = _places(ranker, teacher)
    if reason := unreadable(ranker.spec, teacher.spec, same_tokens=places is not None):
        raise step.fault(step.reads_along, reason, fix=READS_ALONG_FIX)
    states = _states(step, ranker, teacher)
    relations = _relations(step, ranker, teacher)
    if (states or relations) and teacher.spec.rule_layers:
        found = (
            f"a teacher that lets tokens go behind layer {teacher.spec.rule_layers[0]}, so that some states have none"
        )
        raise step.fault("representations", found, allowed="a teacher without token rules", fix=READS_ALONG_FIX)
    maps = {match.name: {own - 1: theirs - 1 for own, theirs in match.states.items() if own} for match in states}
    maps["relations"] = dict(relations.layers) if relations else {}
    supply.note("layer_maps", {name: layers for name, layers in maps.items() if layers})
    projections = None
    widths = ranker.spec.width, teacher.spec.width
    if states and (step.loses_dimensions or widths[0] != widths[1]):
        projections = Projections(states, *widths, supply.seed, always=step.loses_dimensions)
    return Watched(module=_frozen(teacher, step, places), states=states, relations=relations, projections=projections)


def _places(ranker: Ranker, teacher: Ranker) -> list[int] | None:
    """Return the teacher's id of each of the ranker's tokens; empty where they are the same."""
    if ranker.tokenizer.fingerprint == teacher.tokenizer.fingerprint:
        return []
    own, theirs = (json.loads(each.tokenizer_files["tokenizer.json"]) for each in (ranker, teacher))
    return token_places(own, theirs)


def _frozen(teacher: Ranker, step: Distill, places: list[int] | None) -> Encoder:
    import torch

    from compressor.training.precision import computes_in_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if places:
        table = "embeddings.tokens.weight"
        embeddings = teacher.spec.embeddings
        embeddings = embeddings.changed(tokens=embeddings.tokens.changed(rows=len(places)))
        weights = {**teacher.weights, table: teacher.weights[table][places]}
        separator = teacher.spec.separator_id
        separator = None if separator is None else places.index(separator)
        spec = teacher.spec.changed(embeddings=embeddings, separator_id=separator)
        teacher = teacher.changed(spec=spec, weights=weights)
    module = teacher.trainable().requires_grad_(False).eval()
    return module.to(torch.bfloat16) if computes_in_bf16(step.precision, device) else module


def _states(step: Distill, ranker: Ranker, teacher: Ranker) -> list[StateMatch]:
    from compressor.training.matches import StateMatch

    matches = []
    if embeddings := step.representations.embeddings:
        match = StateMatch(name="embeddings", weight=embeddings.weight, states={0: 0}, measure=embeddings.measure)
        matches.append(match)
    if hidden := step.representations.hidden:
        layers = _layers(step, hidden.layers, ranker, teacher, "representations.hidden.layers")
        states = {own + 1: theirs + 1 for own, theirs in layers.items()}  # state 0 is the embeddings
        matches.append(StateMatch(name="hidden", weight=hidden.weight, states=states, measure=hidden.measure))
    return matches


def _relations(step: Distill, ranker: Ranker, teacher: Ranker) -> RelationMatch | None:
    from compressor.training.matches import RelationMatch

    relations = step.representations.relations
    if relations is None:
        return None
    layers = _layers(step, relations.layers, ranker, teacher, "representations.relations.layers")
    if isinstance(relations.layers, str):  # a rule speaks of layers that have relations, a mapping names its own
        own, theirs = ranker.spec.layers, teacher.spec.layers
        layers = {a: b for a, b in layers.items() if own[a].attention and theirs[b].attention} or layers
    heads = _relation_heads(step, relations, layers, ranker, teacher)
    return RelationMatch(weight=relations.weight, layers=layers, kind=relations.kind, heads=heads)


def _relation_heads(
    step: Distill, relations: Relations, layers: dict[int, int], ranker: Ranker, teacher: Ranker
) -> int:
    attentions = []
    for name, model, chosen in (("ranker", ranker, list(layers)), ("teacher", teacher, list(layers.values()))):
        for layer in chosen:
            attention = model.spec.layers[layer].attention
            if attention is None:
                found = f"layer {layer} of the {name}, which has no attention"
                raise step.fault("representations.relations.layers", found, allowed="layers with attention")
            attentions.append(attention)
    shared = math.gcd(*(attention.heads * attention.head_width for attention in attentions))
    heads = relations.heads or math.gcd(shared, attentions[0].heads)
    if shared % heads:
        widths = (
            f"{attentions[0].heads * attentions[0].head_width} and {attentions[-1].heads * attentions[-1].head_width}"
        )
        allowed = f"a divisor of {shared}"
        raise step.fault("representations.relations.heads", f"{heads} for attention {widths} wide", allowed=allowed)
    return heads


def _layers(step: Distill, how: LayerChoice, ranker: Ranker, teacher: Ranker, where: str) -> dict[int, int]:
    n_student, n_teacher = len(ranker.spec.layers), len(teacher.spec.layers)
    try:
        if how == "kept":
            kept = _kept(ranker, teacher)
            return layer_map(n_student, n_teacher, "uniform" if kept is None else kept)
        return layer_map(n_student, n_teacher, how)
    except LayerMapError as error:
        raise step.fault(where, error.found, allowed=error.allowed) from None


def _kept(ranker: Ranker, teacher: Ranker) -> list[int] | None:
    """Return which teacher layer each of the ranker's layers once was; None where it does not stem from the teacher."""
    cuts = []
    for record in ranker.history[len(teacher.history) :]:
        if record.verb == "start_from" and record.settings.get("checkpoint") != SELF:
            return None
        if "kept_layers" in record.notes:
            cuts.append(record.notes["kept_layers"])
    try:
        kept = kept_layers(len(teacher.spec.layers), cuts)
    except LayerMapError:
        return None
    return kept if len(kept) == len(ranker.spec.layers) else None
