"""`merge_adapters`: what an adapter learned goes into the weights, so that it costs nothing when scoring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field

from compressor.errors import Fault, InputError
from compressor.passes.contract import Pass, PlanError, Supply
from compressor.passes.refusals import refuse_factorized, refuse_quantized, refuse_sparse
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("merge_adapters")
class MergeAdapters(Pass):
    """Merge parameter-efficient fine-tuning into the ranker that it was trained on: equal scores, no extra parameters.

    ``adapters``: folders with ``adapter_model.safetensors``, merged in this order, each into what those before it left:

    - PEFT's, with ``adapter_config.json``: LoRA (arXiv 2106.09685), with rsLoRA's scaling (2312.03732), DoRA's
      magnitudes (2402.09353), ranks and alphas by pattern, trained biases, and modules that were trained whole, such as
      the scoring head; RandLoRA (2502.00987) with its random bases in the file, or ternary ones, which are drawn again;
      SHiRA (2406.13175).
    - AdapterBias (2205.00305): ``adapter_vector`` and ``adapter_alpha`` beside a feed-forward's last matrix. Its shift
      depends on the token, but is linear in that matrix's inputs, so matrix and bias hold it exactly.
    - Sparse differences, as of LT-SFT (2110.07560): ``NAME.indices [dimensions, N]`` and ``NAME.values [N]``, added to
      the tensor NAME.

    Any other tensor in the file takes the place of the ranker's own. Names are those of the stock model, PEFT's prefix
    or none before them. What cannot be held by a ranker's matrices is refused, and so is an adapter of another ranker;
    the same shape alone does not make it the same ranker, so stand before all that changes weights.
    """

    adapters: tuple[str, ...] = Field(min_length=1)

    @property
    def changes_weights(self) -> bool:
        return False  # a later adapter may have been trained on the result, or on the base as well

    @property
    def made_for_base(self) -> str:
        return "an adapter"

    def placed(self, base: Path) -> Self:
        return self.changed(adapters=[str((base / Path(folder).expanduser()).resolve()) for folder in self.adapters])

    def fingerprints(self) -> Mapping[str, str]:
        from compressor.families import adapter_fingerprint

        return {folder: adapter_fingerprint(Path(folder)) for folder in self.adapters}

    def plan(self, spec: RankerSpec) -> RankerSpec:
        from compressor.families import check_adapter, open_adapter

        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_factorized(spec, self.verb)
        if spec.exit_layers:
            found = f"exits behind layers {', '.join(map(str, spec.exit_layers))}, which no adapter knew of"
            raise PlanError(found, fix=f"put {self.verb} before add_exits")
        faults: list[Fault] = []
        for folder in self.adapters:
            try:
                adapter = open_adapter(Path(folder))
            except InputError as error:
                raise PlanError(_all_of(error), setting="adapters") from None
            try:
                check_adapter(adapter, spec)
            except InputError as error:
                faults += error.faults
        if faults:
            raise PlanError(
                f"an adapter that was trained on another ranker: {_all_of(InputError(faults))}",
                fix="start from the ranker that it was trained on, and put merge_adapters before all that cuts",
                setting="adapters",
            )
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.families import merged_weights, open_adapter

        notes = []
        for folder in self.adapters:
            adapter = open_adapter(Path(folder))
            base = adapter.config.base if adapter.config else ""
            _refuse_other_base(base, ranker, folder)
            merged = merged_weights(adapter, ranker.spec, ranker.weights)
            changed = [name for name, tensor in merged.items() if tensor is not ranker.weights[name]]
            notes.append({"kind": adapter.kind, "base": base, "changed_tensors": len(changed)})
            ranker = ranker.changed(weights=merged)
        supply.note("adapters", notes)
        return ranker


def _all_of(error: InputError) -> str:
    return "; ".join(map(str, error.faults))


def _refuse_other_base(base: str, ranker: Ranker, folder: str) -> None:
    """Refuse an adapter that names another hub model than the ranker came from; of local paths nothing can be said.

    Raises:
        InputError: names both.
    """
    from compressor.families.hub import is_hub_id

    sources = {"import": "teacher", "start_from": "checkpoint"}
    origins = [str(one.settings.get(sources[one.verb])) for one in ranker.history if one.verb in sources]
    origin = next((one for one in reversed(origins) if one != "self"), "")
    names = [name.partition("@")[0] for name in (base, origin)]
    if all(is_hub_id(name) and not Path(name).exists() for name in names) and names[0] != names[1]:
        raise InputError(
            Fault(
                source=folder,
                where="base_model_name_or_path",
                found=f"{base}, and the ranker is {origin}",
                allowed="the ranker that the adapter was trained on",
                fix=f"name {base} as teacher or in start_from; if they are one model, say so in adapter_config.json",
            )
        )
