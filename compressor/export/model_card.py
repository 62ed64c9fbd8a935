"""The model card: what the folder is, how fast and how good it was measured to be, and how each consumer loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from compressor.export.manifest import CARD, COMPANION_FILE
from compressor.runtime.folder import BUILDS_KEY, CASCADE_KEY, HALF_FILES, PORTABLE_FILE, SHARED_QUERY_KEY
from compressor.storage import write_whole


def write_model_card(folder: Path, manifest: Mapping[str, Any], table_markdown: str | None) -> None:
    """Write the folder's ``README.md``.

    Args:
        folder: the exported folder.
        manifest: its ``rankpress.json``.
        table_markdown: the measured table, or None before anything was measured.
    """
    parts = [_front_matter(manifest), _title(manifest), _measured(table_markdown), _files(manifest), _usage(manifest)]
    write_whole(folder / CARD, "\n".join(parts))


def _is_bi_encoder(manifest: Mapping[str, Any]) -> bool:
    return manifest.get("kind") == "bi_encoder"


def _front_matter(manifest: Mapping[str, Any]) -> str:
    bi_encoder = _is_bi_encoder(manifest)
    verbs = [record["verb"] for record in manifest["history"]]
    front: dict[str, Any] = {
        "library_name": "sentence-transformers" if "model.safetensors" in manifest["files"] else "onnx",
        "pipeline_tag": "sentence-similarity" if bi_encoder else "text-ranking",
        "tags": ["bi-encoder" if bi_encoder else "cross-encoder", "reranker", "rankpress", "onnx"],
    }
    teacher = _teacher_name(manifest)
    if teacher and "/" in teacher and not teacher.startswith((".", "/", "~")) and teacher.count("/") == 1:
        front["base_model"] = teacher
    front["base_model_relation"] = "quantized" if verbs and set(verbs) <= {"import", "quantize"} else "finetune"
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _teacher_name(manifest: Mapping[str, Any]) -> str:
    teacher = manifest.get("teacher")
    return str(teacher.get("name", "")) if isinstance(teacher, Mapping) else str(teacher or "")


def _title(manifest: Mapping[str, Any]) -> str:
    steps = [record["verb"] for record in manifest["history"] if record["verb"] != "import"]
    done = f"by these passes: {', '.join(steps)}" if steps else "as it is, without any pass"
    teacher = _teacher_name(manifest) or "a transformer ranker"
    return (
        f"# {'Text encoder' if _is_bi_encoder(manifest) else 'Reranker'} made with rankpress\n\n"
        f"Made from {teacher}, {done}. `rankpress.json` holds the whole recipe, the versions and the hashes.\n"
    )


def _measured(table_markdown: str | None) -> str:
    return f"## Measured\n\n{table_markdown.strip() if table_markdown else 'Not measured yet.'}\n"


def _files(manifest: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {entry['role']} | {entry['size_bytes'] / 1e6:.1f} |"
        for name, entry in manifest["files"].items()
        if entry["role"] != "tokenizer"
    ]
    return "## Files\n\n| file | what it is | MB |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _usage(manifest: Mapping[str, Any]) -> str:
    if _is_bi_encoder(manifest):
        return _BI_ENCODER
    parts = [_CROSS_ENCODER]
    if "model.safetensors" in manifest["files"]:
        parts.append(_SENTENCE_TRANSFORMERS)
    else:
        parts.append(_NO_CHECKPOINT)
    parts.append(_SERVERS)
    if CASCADE_KEY in manifest:
        parts.append(_CASCADE)
    if SHARED_QUERY_KEY in manifest:
        parts.append(_SHARED_QUERY)
    builds = manifest.get(BUILDS_KEY, [])
    if COMPANION_FILE in manifest["files"] and COMPANION_FILE not in {build["file"] for build in builds}:
        parts.append(_COMPANION)
    if builds:
        parts.append(_BUILDS + "".join(_BUILD.format(**{**one, "cpus": ", ".join(one["cpus"])}) for one in builds))
    kinds = manifest["precision"]["linears"]
    if builds or COMPANION_FILE in manifest["files"] or {"int8_dynamic", "int8_static"} & kinds.keys():
        parts.append(_OLD_CPUS)
    if {"int8_blocks", "int4_blocks"} & kinds.keys():
        parts.append(_BLOCKS.format(runtime=manifest["precision"]["onnxruntime"]))
    parts += [_HALF.format(file=file) for file in HALF_FILES.values() if file in manifest["files"]]
    if PORTABLE_FILE in manifest["files"]:
        parts.append("`onnx/model_portable.onnx` holds the same ranker in standard ops, for OpenVINO and TensorRT.\n")
    return "\n".join(parts)


_BI_ENCODER = """## Use

The graph gives a unit vector per text; the score of a pair is the dot product of its two vectors.

```python
from compressor import OnnxRanker

ranker = OnnxRanker.load("PATH/TO/THIS/FOLDER")
for hit in ranker.rank("a question", ["a passage", "another passage"], top_k=1):
    print(hit.index, hit.score)
```
"""

_CROSS_ENCODER = """## Use

Scores are raw logits: higher is more relevant, and no sigmoid or softmax is applied. Apply a sigmoid where a number
between 0 and 1 is wanted; the order stays the same. `rankpress doctor PATH/TO/THIS/FOLDER` says which runtimes and
servers load this folder, and why others do not.

**rankpress** (numpy, tokenizers and ONNX Runtime; no torch)

```python
from compressor import OnnxRanker

ranker = OnnxRanker.load("PATH/TO/THIS/FOLDER")
for hit in ranker.rank("a question", ["a passage", "another passage"], top_k=1):
    print(hit.index, hit.score)
```

**fastembed**

```python
from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder

TextCrossEncoder.add_custom_model("my-reranker", model_file="onnx/model.onnx", sources=ModelSource(hf="my/reranker"))
ranker = TextCrossEncoder("my-reranker", specific_model_path="PATH/TO/THIS/FOLDER")
scores = list(ranker.rerank("a question", ["a passage", "another passage"]))
```
"""

_SENTENCE_TRANSFORMERS = """**sentence-transformers** (torch)

```python
from sentence_transformers import CrossEncoder

ranker = CrossEncoder("PATH/TO/THIS/FOLDER")
scores = ranker.predict([("a question", "a passage"), ("a question", "another passage")])
```
"""

_NO_CHECKPOINT = """**sentence-transformers, transformers**: this shape is no stock architecture (or not in full
precision), so there is no torch checkpoint here; use the ONNX file.
"""

_SERVERS = """**text-embeddings-inference** (loads `onnx/model.onnx`; ask for `raw_scores`, or take its sigmoid)

```
docker run -p 8080:80 -v PATH/TO/THIS/FOLDER:/model \\
  ghcr.io/huggingface/text-embeddings-inference:cpu-latest --model-id /model
curl 127.0.0.1:8080/rerank -H 'Content-Type: application/json' \\
  -d '{"query": "a question", "texts": ["a passage", "another passage"], "raw_scores": true}'
```

**transformers.js**: the `text-classification` pipeline applies a softmax, which over a single logit is 1 for every
pair. Call the model class instead:

```js
import { AutoTokenizer, AutoModelForSequenceClassification } from "@huggingface/transformers";

const tokenizer = await AutoTokenizer.from_pretrained("PATH/TO/THIS/FOLDER");
const model = await AutoModelForSequenceClassification.from_pretrained("PATH/TO/THIS/FOLDER", { dtype: "fp32" });
const inputs = tokenizer(["a question"], { text_pair: ["a passage"], padding: true, truncation: true });
const { logits } = await model(inputs);
```
"""

_CASCADE = """**Lists are ranked in stages.** rankpress runs the graphs `onnx/cascade_*.onnx` in turn: behind each but
the last, the weakest candidates of the query are dropped (`cascade` in `rankpress.json` says how many stay). A dropped
one stands below all that went further, with a score that compares within its ranking alone. `score`, and every other
runtime, takes `onnx/model.onnx`, at full depth.
"""

_SHARED_QUERY = """**A list's query is run once.** Queries do not see documents here, so that rankpress's `rank` runs
`onnx/query.onnx` on the query and `onnx/candidates.onnx` on the documents beside it. Scores are those of
`onnx/model.onnx`, which `score` and every other runtime take.
"""

_COMPANION = """`onnx/model_quantized.onnx` is the main file in dynamic int8, for consumers that look for that name
(transformers.js `q8`, infinity). It is not what the table above measures unless a row says so; `rankpress.json`
states how far its scores lie from those of the main file.
"""

_BUILDS = """**Builds by CPU.** rankpress loads the file that is for the CPU at hand, by its class (the best instruction
that it has for int8), and `onnx/model.onnx` on all others. `OnnxRanker.load(..., file="onnx/model.onnx")` asks for one;
the attributes `onnx_path` and `reason` tell which one runs. Other runtimes load what they are told to. The table above
measures what the CPU that it names takes; `rankpress.json` states how far the scores of each lie from those of the main
file.

| file | precision | classes of CPUs |
| --- | --- | --- |
"""

_BUILD = "| `{file}` | {precision} | {cpus} |\n"

_OLD_CPUS = """**int8 on x86 CPUs without VNNI** (Intel before Cascade Lake, AMD before Zen 4): by default ONNX
Runtime sums products there in 16 bits, which saturate, and scores are wrong. rankpress asks for wide sums; in another
runtime set the session option `session.x64quantprecision` to `1`, or compress with `quantize: {reduce_range: true}`,
whose 7-bit weights are safe everywhere.
"""

_BLOCKS = """**Weights by blocks** (`MatMulNBits`): `onnx/model.onnx` wants ONNX Runtime {runtime}. Products are those
of whole numbers where its kernels for a CPU know how, else of floats: scores differ a little between such CPUs.
"""

_HALF = """`{file}` computes in half precision, for GPUs; the head, the inputs and the output stay as they are, so that
callers need not change. `onnx/model.onnx` computes with the same weights in fp32, for CPUs.
"""
