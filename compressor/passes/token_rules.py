"""Where token rules stand: what the passes that set them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from compressor.errors import Fault, InputError
from compressor.passes.contract import PlanError, Promise, Supply
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import (
    AttentionScorer,
    ClassifierHead,
    KeepRule,
    KeepShareRule,
    MergeRule,
    PageRankScorer,
    PoolRule,
    RankerSpec,
    TokenRule,
)
from compressor.ranker.token_rule_spec import LEAST_MERGED_SHARE

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker
    from compressor.training.drawn_rules import DrawnTokenRules


TAKEN_AWAY = "taken_away"  # the note of layers whose rule a pass took away, as it was told to
Place = NonNegativeInt | Literal["middle"]
KeptShare = Annotated[float, Field(ge=0.001, le=1)]
ScorerName = Literal["attention", "pagerank"]  # those that share attention out
SCORERS: Mapping[ScorerName, AttentionScorer | PageRankScorer] = {
    "attention": AttentionScorer(),
    "pagerank": PageRankScorer(),
}
BESIDE_NO_GATES = ("evaluate_every", "layer_drop")  # settings of a training that have no use for gates on tokens


_VERBS = {"pool": "pool_tokens", "keep_share": "keep_tokens", "keep_threshold": "learn_thresholds",
          "merge": "merge_tokens"}  # fmt: skip
_TAKES_AWAY = {
    "pool_tokens": "stride 1",
    "keep_tokens": "a share of 1 and the same scorer",
    "merge_tokens": "a share of 1",
}


def verbs_of_rules(spec: RankerSpec, layers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the passes that set token rules as they stand behind some layers, or all, each once, the lowest first."""
    rules = [spec.layers[layer].token_rule for layer in (spec.rule_layers if layers is None else layers)]
    return tuple(dict.fromkeys(_VERBS[rule.kind] for rule in rules if rule))


def refuse_whole_rows(spec: RankerSpec) -> None:
    """Refuse a ranker whose rows have no query and document, or none of whose layers has one behind it.

    Raises:
        PlanError: a bi-encoder, or a single layer.
    """
    if not isinstance(spec.head, ClassifierHead):
        raise PlanError(
            "a bi-encoder, whose rows hold one text: there is no query to keep and no document to shorten",
            allowed="a cross-encoder",
        )
    if len(spec.layers) == 1:
        found = "a ranker of one layer, behind which nothing reads the tokens that are left"
        raise PlanError(found, allowed="two layers or more", fix="have the passes before it leave two layers or more")


def place_of(layer: int | Literal["middle"], spec: RankerSpec, setting: str) -> int:
    """Return the index of the layer behind which a rule shall stand.

    Raises:
        PlanError: the ranker has no such layer, or no layer behind it; names ``setting``.
    """
    last = len(spec.layers) - 1
    if layer == "middle":
        return (last - 1) // 2
    if layer >= last:
        raise PlanError(
            f"layer {layer} of a ranker of {last + 1} layers",
            allowed=f"0 to {last - 1}, or middle: behind layer {last}, the last, no layer would run on fewer tokens",
            setting=setting,
        )
    return layer


def judged_places(layers: Mapping[Place, float], spec: RankerSpec, *, by_attention: bool = True) -> dict[int, float]:
    """Return the share of document tokens that stays behind each layer by its index, from what the setting names.

    Raises:
        PlanError: a layer that the ranker does not have, the same one twice, or one without attention to judge by.
    """
    places = {place_of(layer, spec, "layers"): share for layer, share in layers.items()}
    if len(places) < len(layers):
        found = f"layer {place_of('middle', spec, 'layers')} by its number and as the middle"
        raise PlanError(found, allowed="each layer once", setting="layers")
    if by_attention and (blind := [place for place in places if not spec.layers[place].attention]):
        raise PlanError(
            f"layer {blind[0]}, which has no attention to judge tokens by",
            allowed="layers with attention",
            fix="choose another layer, or pool_tokens, which judges nothing",
            setting="layers",
        )
    return places


def with_rules(
    spec: RankerSpec,
    rules: Mapping[int, TokenRule],
    setting: str,
    without: Mapping[int, TokenRule] = MappingProxyType({}),
) -> RankerSpec:
    """Return the shape with token rules behind some layers, in the place of such as differ by their numbers alone.

    Args:
        spec: the shape.
        rules: what shall stand, by layer.
        setting: of the pass, that names the layers.
        without: what shall stand no more, by layer, up to its numbers: there another rule stays, and none is no fault.

    Raises:
        PlanError: a layer has another one already; names ``setting``.
    """
    gone = {layer: None for layer, rule in without.items() if _alike(rule, spec, layer)}
    taken = [layer for layer in rules if layer in spec.rule_layers and not _alike(rules[layer], spec, layer)]
    if taken:
        others = [str(layer) for layer in range(len(spec.layers) - 1) if layer not in spec.rule_layers]
        (verb,) = verbs_of_rules(spec, taken[:1])
        how = f", and {verb} with {_TAKES_AWAY[verb]} takes away what stands" if verb in _TAKES_AWAY else ""
        raise PlanError(
            f"layer {taken[0]}, behind which tokens go already",
            allowed=f"layers without a token rule: {', '.join(others) or 'there is none'}",
            fix=f"choose another layer: one rule stands behind each{how}",
            setting=setting,
        )
    if rules and spec.cascade:
        raise PlanError(
            "a ranker that has a cascade, whose graphs hand all tokens on",
            allowed="one without",
            fix="leave one of the two passes out",
        )
    if half := [place for place in rules if spec.layers[place].states != "fp32"]:
        raise PlanError(
            f"layer {half[0]}, which computes in {spec.layers[half[0]].states}",
            allowed="layers in fp32, in which a rule judges tokens",
            fix="put this pass before quantize and name the layer under keep_fp32 there",
            setting=setting,
        )
    changed = with_token_rules(spec, {**gone, **rules})
    needs_separator = changed.rule_layers or changed.isolates_query
    return changed if needs_separator or not gone else changed.changed(separator_id=None)


def ruled_as(ranker: Ranker, spec: RankerSpec, supply: Supply, verb: str) -> Ranker:
    """Return the ranker in a shape with other token rules; scorers that it had not have weights of zero.

    Raises:
        InputError: it has rules, and pairs have no separator that these could go by.
    """
    import torch

    from compressor.ranker.encoder import expected_shapes

    gone = [layer for layer in ranker.spec.rule_layers if layer not in spec.rule_layers]
    if gone:
        supply.note(TAKEN_AWAY, gone)
    shapes = expected_shapes(told := told_apart(ranker, spec, verb))
    weights = {name: ranker.weights[name] if name in ranker.weights else torch.zeros(shapes[name]) for name in shapes}
    return ranker.changed(spec=told, weights=weights)


def told_apart(ranker: Ranker, spec: RankerSpec, verb: str) -> RankerSpec:
    """Return a shape that knows the separator of the ranker's tokenizer, where something in it goes by that.

    Raises:
        InputError: pairs have no separator.
    """
    if not spec.rule_layers and not spec.isolates_query:
        return spec
    separator = ranker.tokenizer.separator_id
    if separator is None:
        found = "a tokenizer that puts no special token of its own between query and document"
        raise InputError(Fault(source=verb, found=found, allowed="one whose pairs have a separator"))
    return spec.changed(separator_id=separator)


def rules_stay(result: Ranker, places: Sequence[int]) -> list[Promise]:
    """Return the promise that the rules behind some layers stay, but where they are taken away on purpose."""
    made = {place: result.spec.layers[place].token_rule for place in places}
    n_layers, n_records = len(result.spec.layers), len(result.history)

    def check(ranker: Ranker) -> str | None:
        if len(ranker.spec.layers) != n_layers:  # a pass that takes layers away says what becomes of their rules
            return None
        wanted_gone = {layer for record in ranker.history[n_records:] for layer in record.notes.get(TAKEN_AWAY, ())}
        lost = [place for place, rule in made.items() if not _alike(rule, ranker.spec, place)]
        lost = [place for place in lost if place not in wanted_gone]
        return f"another rule or none behind layer {lost[0]}" if lost else None

    named = ", ".join(map(str, places))
    return [Promise(text=f"as long as no layer goes, tokens go behind {named} as now", check=check)] if made else []


def refuse_beside_gates(settings: Mapping[str, object]) -> None:
    """Refuse settings of a training, by name, that make no sense while gates let every token through in part.

    Raises:
        PlanError: names the first that is set.
    """
    for setting, value in settings.items():
        if value:
            raise PlanError(
                f"{setting} with gates that let every token through in part, in all of their layers",
                fix=f"take {setting} away; put distill behind, which may have it",
                setting=setting,
            )


def refuse_drawn_rules(spec: RankerSpec, drawn: DrawnTokenRules) -> None:
    """Refuse to train with strides or shares that the ranker's own token rules have no use for.

    Raises:
        PlanError: there is no such rule, or its own number is none of those that are trained.
    """
    kinds: tuple[tuple[str, tuple[type[TokenRule], ...], str, str], ...] = (
        ("strides", (PoolRule,), "stride", "pool_tokens"),
        ("shares", (KeepShareRule, MergeRule), "share", "keep_tokens or merge_tokens"),
    )
    for setting, kind, name, verb in kinds:
        numbers = getattr(drawn, setting)
        if not numbers:
            continue
        rules = {layer: rule for layer in spec.rule_layers if isinstance(rule := spec.layers[layer].token_rule, kind)}
        if not rules:
            raise PlanError(
                f"{setting} for a ranker that has no rule with a {name}",
                fix=f"put {verb} before it, or take {setting} away",
                setting=f"token_rules.{setting}",
            )
        for layer, rule in rules.items():
            if (own := getattr(rule, name)) not in numbers:
                raise PlanError(
                    f"the {name} {own:g} behind layer {layer}, by which the result will rank, and training without it",
                    allowed=f"{setting} with {own:g} among them",
                    setting=f"token_rules.{setting}",
                )
            if isinstance(rule, MergeRule) and min(numbers) < LEAST_MERGED_SHARE:
                raise PlanError(
                    f"a share of {min(numbers):g} behind layer {layer}, where tokens merge",
                    allowed=f"shares from {LEAST_MERGED_SHARE:g}: one half of the tokens merges into the other at most",
                    setting=f"token_rules.{setting}",
                )


def _alike(rule: TokenRule | None, spec: RankerSpec, layer: int) -> bool:
    """Return whether the rule behind a layer is this one, up to the number of tokens that it leaves."""
    other = spec.layers[layer].token_rule
    if isinstance(rule, KeepRule) and isinstance(other, KeepRule):
        return rule.kind == other.kind and rule.scorer == other.scorer
    return type(rule) is type(other)
