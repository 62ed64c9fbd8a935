"""What `distill` and `finetune` share: how a pass that trains meets the contract of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat

from compressor.algorithms.loss_options import LossOptions
from compressor.errors import Fault, InputError
from compressor.passes.adapter_settings import Adapters, Settle
from compressor.passes.contract import Need, Pass, PlanError, Supply
from compressor.passes.refusals import refuse_bi_encoder, refuse_quantized
from compressor.passes.token_rules import refuse_drawn_rules
from compressor.ranker.rounding import is_rounded
from compressor.ranker.spec import RankerSpec
from compressor.storage import sha256_json
from compressor.training.drawn_parts import DrawnParts
from compressor.training.drawn_rules import DrawnTokenRules
from compressor.training.lists import check_sources
from compressor.training.loss_settings import ExitLosses
from compressor.training.mask_settings import TokenScorerSettings
from compressor.training.settings import Share, TrainingSettings

if TYPE_CHECKING:
    from compressor.data import RankingData
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.ranker import Ranker
    from compressor.training.batches import ListSource
    from compressor.training.objective import Objective
    from compressor.training.result import TrainingResult
    from compressor.training.scorer_heads import ScorerHeads
    from compressor.training.teachers import Teacher


# Others of this kind choose or reshape weights while they train, which rounded ones would not let them.
_TRAIN_ROUNDED = ("distill", "finetune")
# Others write into matrices while they train, or learn what takes their place.
_TRAIN_ADAPTERS = ("distill", "finetune", "learn_thresholds", "learn_widths", "nest_widths")


class TrainingPass(TrainingSettings, Pass):
    """A pass that trains a cross-encoder's weights and leaves its shape as it is.

    ``exits``: the weight of the ranker's exits, each trained with the losses on scores and on the final scores (BGE
    layerwise; "Be Your Own Teacher", arXiv 1905.08094). By default 1 where the ranker has exits.
    ``exit_losses``: losses of the exits alone, on the teacher's scores where there are any, else on the final ones.
    ``{keep_top: {keep: 0.3}}`` makes them fit to be stages of a `cascade`.
    ``layer_drop``: the probability with which a step leaves a layer out, so that `drop_layers` can take any depth out
    of the result (LayerDrop, arXiv 1909.11556; 0.2 there, 0.5 for half of the layers). Drawn anew for each step; at
    least one layer runs, and of those that do not, neither states nor exits are trained.
    ``token_rules``: of the ranker's token rules, what a step puts in their place, drawn anew for each step:
    ``{strides: [1, 2, 4]}`` makes pools elastic (LTC, arXiv 2605.20683), ``{shares: [1, 0.7, 0.5]}`` shares that are
    kept. The result has the rules that it had; the passes that set them may set others of these numbers.
    ``token_scorers``: have the vectors of learned scorers (`keep_tokens` with ``scorer: learned``) learn, too, from the
    teacher's scores, or from the ranker's own where none is asked, through heads that are dropped in the end (Token
    Cropr, arXiv 2412.00965); ``{}`` for its defaults. Nothing else of the ranker learns from these heads. By default
    vectors stay as they were fitted, and so does what they pick of equal states.
    ``freeze_embeddings``: leave the embeddings as they are.
    ``adapters``: train adapters beside frozen matrices, and merge them in the end: ``{kind: lora, rank: 8}``, or
    ``{kind: randlora}``. Less memory for the optimizer, smaller checkpoints, and less that can go wrong on little data.
    Zeros of `sparsify` stay: updates are masked at every step. Behind `quantize`, matrix and update are rounded as one.

    Behind `quantize`, `distill` and `finetune` train through its rounding (quantization-aware training): each step
    computes with rounded numbers, gradients pass straight through to the weights behind them, and what comes out is
    rounded as before. Ranges of int8_static stay as calibration fixed them: weights learn to live within them. Products
    are taken in fp32 then, unless ``precision`` says bf16, which would blur what is rounded.
    """

    verb: ClassVar[str]

    exits: NonNegativeFloat | None = None
    exit_losses: ExitLosses = ExitLosses()
    layer_drop: Share = 0.0
    token_rules: DrawnTokenRules | None = None
    token_scorers: TokenScorerSettings | None = None
    freeze_embeddings: bool = False
    adapters: Adapters | None = None

    def needs(self) -> frozenset[Need]:
        if not self.evaluate_every:
            return frozenset()
        return frozenset({"dev", "teacher"} if self.dev_measure == "kendall_tau" else {"dev"})

    def check_data(self, load: Callable[[Need], RankingData]) -> None:
        for need in sorted(self.needs() & {"train", "in_domain"}):
            check_sources(load(need), self.lists, self.verb)

    def plan(self, spec: RankerSpec) -> RankerSpec:
        if self.verb not in _TRAIN_ROUNDED:
            refuse_quantized(spec, self.verb)
        refuse_bi_encoder(spec)
        if self.exits and not spec.exit_layers:
            raise PlanError(
                f"weight {self.exits:g} for the exits of a ranker that has none",
                allowed="0, or a ranker with exits",
                fix="put add_exits before it, or take exits away",
                setting="exits",
            )
        if self.exit_losses and not self.exits_weight(spec):
            found = "losses of exits alone, and " + ("a weight of 0 for them" if spec.exit_layers else "no exits")
            raise PlanError(found, fix="put add_exits before it, or take exit_losses away", setting="exit_losses")
        self.refuse_short_lists(self.exit_losses.terms(), "exit_losses")
        if self.layer_drop and len(spec.layers) == 1:
            found = f"layer_drop {self.layer_drop:g} for a ranker of one layer, which always runs"
            raise PlanError(found, allowed="0, or a ranker of two layers or more", setting="layer_drop")
        if self.token_rules:
            refuse_drawn_rules(spec, self.token_rules)
        if self.adapters:
            if self.verb not in _TRAIN_ADAPTERS:
                raise PlanError(
                    f"adapters in {self.verb}, which writes into matrices that adapters would leave alone",
                    allowed=f"adapters in {', '.join(_TRAIN_ADAPTERS)}",
                    fix="take adapters away; put distill with adapters behind",
                    setting="adapters",
                )
            self.adapters.adapted(spec)
        if self.token_scorers and not any(layer.has_learned_scorer for layer in spec.layers):
            raise PlanError(
                "token_scorers for a ranker that has no learned scorer",
                fix="put keep_tokens with scorer: learned before it, or take token_scorers away",
                setting="token_scorers",
            )
        return spec

    def exits_weight(self, spec: RankerSpec) -> float:
        """Return the weight of the exits, its default filled in."""
        return float(bool(spec.exit_layers)) if self.exits is None else self.exits

    def scorer_heads(self, spec: RankerSpec, seed: int) -> ScorerHeads | None:
        """Return the heads through which learned scorers of a ranker of this shape learn, if they do."""
        if self.token_scorers is None:
            return None
        from compressor.training.scorer_heads import ScorerHeads

        return ScorerHeads(spec, self.token_scorers, seed)

    def parts(self, spec: RankerSpec, seed: int) -> DrawnParts:
        """Return which parts of a ranker of this shape each step trains."""
        rules = self.token_rules.by_layer(spec) if self.token_rules else {}
        return DrawnParts(n_layers=len(spec.layers), seed=seed, layer_drop=self.layer_drop, token_rules=rules)

    def refuse_short_lists(self, losses: Iterable[tuple[str, LossOptions]], setting: str) -> None:
        """Refuse losses that compare items, where lists have but one.

        Raises:
            PlanError: names the loss.
        """
        size = self.lists.list_size
        for name, options in losses:
            if size < options.least:
                raise PlanError(
                    f"{name}, which compares the items of a list, and lists of {size}",
                    allowed=f"lists.list_size from {options.least}, or a loss on single pairs",
                    setting=f"{setting}.{name}",
                )

    def fault(self, where: str, found: str, *, allowed: str = "", fix: str = "") -> InputError:
        """Return the error of a setting that does not fit the models or the data at hand."""
        return InputError(Fault(source=self.verb, where=where, found=found, allowed=allowed, fix=fix))

    def train(
        self,
        ranker: Ranker,
        supply: Supply,
        data: RankingData,
        objective: Objective,
        teachers: Sequence[Teacher] = (),
        standardize: bool = False,
        by_positive: bool = False,
    ) -> Ranker:
        """Return the ranker, trained; curves and figures go to the supply.

        Args:
            ranker: where training starts.
            supply: the pass's supply.
            data: what it trains on.
            objective: the loss.
            teachers: whose stored scores the lists bring along.
            standardize: whether they are brought to one scale.
            by_positive: whether lists are made around relevant documents.
        """
        from compressor.training.batches import ListSource
        from compressor.training.loop import train
        from compressor.training.steps import StepPlan

        check_sources(data, self.lists, self.verb)
        settings = self._settings(ranker.spec)
        source = ListSource(
            data=data, tokenizer=ranker.tokenizer, settings=self.lists, seed=supply.seed, by_positive=by_positive
        )
        if teachers:
            self._ask(teachers, standardize, source, supply)
        module = ranker.trainable()
        settle = self._put_adapters(module, supply) if self.adapters else dict
        if self.freeze_embeddings:
            module.embeddings.requires_grad_(False)
        if self.adapters:
            supply.note("trained_parameters", sum(one.numel() for one in module.parameters() if one.requires_grad))
        objective.begin(module, StepPlan(source=source, settings=settings, seed=supply.seed).count())

        named = self.model_dump(mode="json", exclude_none=True)  # as in the names of stages
        result = train(
            module,
            source,
            objective,
            settings,
            scratch=supply.scratch,
            seed=supply.seed,
            evaluate=self._evaluation(ranker, supply),
            after_step=lambda _: objective.after_step(),
            extra=objective.extra,
            rates=objective.rates,
            prepare=objective.prepare,
            parts=self.parts(ranker.spec, supply.seed),
            rewinds=objective.rewinds,
            key=sha256_json([self.verb, named, dict(self.fingerprints()), ranker.fingerprint]),
        )
        _report(result, supply)
        return ranker.changed(weights=settle(objective.settled(result.weights)))

    def _put_adapters(self, module: Encoder, supply: Supply) -> Settle:
        assert self.adapters is not None  # noqa: S101  # asked before
        try:
            settle = self.adapters.put_into(module, supply.seed)
        except PlanError as error:  # planned for other widths than those that were measured
            raise self.fault(error.setting, error.found, allowed=error.allowed, fix=error.fix) from None
        supply.note("adapted_linears", len(self.adapters.adapted(module.spec)))
        return settle

    def _ask(self, teachers: Sequence[Teacher], standardize: bool, source: ListSource, supply: Supply) -> None:
        """Have the teachers score what training will see, and nothing else."""
        from compressor.training.labelling import teacher_scores
        from compressor.training.steps import StepPlan

        steps = StepPlan(source=source, settings=self, seed=supply.seed)
        drawn = dict.fromkeys(
            (one.query, document)
            for lists in steps.after(0, steps.count())
            for one in lists
            for document in one.documents
        )
        scores = teacher_scores(teachers, source.data, list(drawn), own=supply.teacher, standardize=standardize)
        supply.note("teachers", scores.notes)
        self.refuse_unknown_offsets(scores.offsets_known)
        source.targets = scores.of

    def refuse_unknown_offsets(self, offsets_known: bool) -> None:
        """Refuse losses on scores as they are, where only differences are known."""

    def _settings(self, spec: RankerSpec) -> TrainingSettings:
        """Return how a ranker of this shape is trained: in fp32 where rounding is simulated, unless bf16 is named."""
        is_exact = not is_rounded(spec) or self.precision != "auto"
        return self if is_exact else self.model_copy(update={"precision": "fp32"})

    def _evaluation(self, ranker: Ranker, supply: Supply) -> Callable[[Encoder], float] | None:
        from compressor.training.dev_metric import KENDALL_TAU, dev_metric

        if not self.evaluate_every:
            return None
        data, reference = supply.data("dev"), None
        if self.dev_measure == KENDALL_TAU:
            from compressor.training.labelling import teacher_scores
            from compressor.training.teachers import RankerTeacher

            reference = teacher_scores([RankerTeacher()], data, data.pairs(), own=supply.teacher).values
        return dev_metric(data, ranker.tokenizer, self._settings(ranker.spec), reference)


def _report(result: TrainingResult, supply: Supply) -> None:
    supply.note("pairs", result.pairs)
    supply.note("steps", result.steps)
    supply.note("training_s", round(result.seconds, 1))
    supply.note("pairs_per_s", round(result.pairs_per_s, 2))
    supply.note("stopped_early", result.stopped_early)
    if dev := [value for name, points in result.curves.items() if name.startswith("dev/") for _, value in points]:
        supply.note("best_dev", round(max(dev), 5))
    supply.note("last", {name: round(points[-1][1], 5) for name, points in result.curves.items() if points})
    for name, points in result.curves.items():
        supply.curve(name, points)
