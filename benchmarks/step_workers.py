"""One contender of ``benchmarks/train_step.py``, in a process of its own under an interpreter of its own.

It reads commands from standard input, a JSON object a line, and answers each by one on standard output:
``{"data", "slots", "ids", "batch", "k", "t", "rate", "cores", "gpu"}`` builds and warms up, ``{"seconds"}`` runs
whole steps for that long. Everything else that a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import cycle
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.pop(0)  # this folder, whose files are no modules of anybody

import numpy as np

Step = Callable[[], float]  # a whole training step on the next batch, whose loss it gives
Batches = list[tuple[np.ndarray, np.ndarray]]  # ids from 0 in each slot, int64 [batch, slots]; labels float32 [batch]


def ours(batches: Batches, size: int, task: dict[str, Any]) -> tuple[Step, str]:
    """``CTRModel.train_step`` in a tf.function, as the training loop calls it. AFM_CTR_POOLING says which pooling."""
    import tensorflow as tf

    from afm_ctr import optimizers
    from afm_ctr.distributed import SingleWorld, wrap_optimizer
    from afm_ctr.models import CTRModel

    slots = task["slots"]
    pairs = np.argwhere(np.triu(np.ones((slots, slots), bool), 1)).astype(np.int32)
    options = {"factors": task["k"], "attention": task["t"]}
    model = CTRModel("afm", options, feature_size=size * slots + 1, num_slots=slots, pairs=pairs)
    optimizer = wrap_optimizer(optimizers.build("adam", learning_rate=task["rate"]), SingleWorld())
    model.compile(optimizer=optimizer, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    ready = cycle(
        {
            "feature_ids": tf.constant(ids + 1 + size * np.arange(slots)),  # 0 is an absent slot
            "feature_vals": tf.ones(ids.shape),
            "label": tf.constant(labels),
        }
        for ids, labels in batches
    )
    step = tf.function(model.train_step)

    def run() -> float:
        model.loss_tracker.reset_state()
        return float(step(next(ready))["loss"])

    return run, f"tensorflow {tf.__version__}"


def deepctr(batches: Batches, size: int, task: dict[str, Any], regularisers: bool = True) -> tuple[Step, str]:
    """The train function of Keras, as ``fit`` calls it for every step, on a data set of ready batches in memory."""
    import deepctr.inputs as inputs
    import tensorflow as tf
    from deepctr.feature_column import SparseFeat
    from deepctr.models import AFM

    if not regularisers:
        inputs.l2 = lambda rate: None  # λ = 0 makes DeepCTR read whole tables all the same, and makes gradients dense
    columns = [SparseFeat(f"f{slot}", size, task["k"]) for slot in range(task["slots"])]
    none = {"l2_reg_linear": 0, "l2_reg_embedding": 0, "l2_reg_att": 0}
    model = AFM(columns, columns, attention_factor=task["t"], **none)
    model.compile(tf.keras.optimizers.Adam(task["rate"]), "binary_crossentropy")

    ids, labels = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    features = {f"f{slot}": ids[:, :, slot : slot + 1].astype(np.int32) for slot in range(task["slots"])}
    ready = iter(tf.data.Dataset.from_tensor_slices((features, labels[:, :, None])).repeat())
    step = model.make_train_function()

    def run() -> float:
        model.reset_metrics()
        return float(step(ready)["loss"])

    return run, f"deepctr {version('deepctr')}, tensorflow {tf.__version__}"


def fuxictr(batches: Batches, size: int, task: dict[str, Any]) -> tuple[Step, str]:
    """``BaseModel.train_step`` and the reading of the loss, as ``train_epoch`` does for every batch.

    FuxiCTR's package has no AFM: that is in the model zoo of its repository. It is put together here of the same
    layers of the package.
    """
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, LogisticRegression
    from fuxictr.pytorch.models import BaseModel

    torch.set_num_threads(task["cores"])
    names = [f"f{slot}" for slot in range(task["slots"])]
    fields = FeatureMap("synthetic", tempfile.gettempdir())
    fields.features.update({name: {"type": "categorical", "vocab_size": size, "source": ""} for name in names})
    fields.labels, fields.num_fields = ["label"], len(names)

    class AFM(BaseModel):
        def __init__(self) -> None:
            folder, gpu = tempfile.gettempdir(), 0 if task["gpu"] else -1
            super().__init__(fields, verbose=0, model_root=folder, metrics=["AUC"], gpu=gpu)
            k, t = task["k"], task["t"]
            self.vectors = FeatureEmbedding(fields, k)
            self.linear = LogisticRegression(fields)
            self.products = InnerProductInteraction(len(names), output="elementwise_product")
            scores = [torch.nn.Linear(k, t), torch.nn.ReLU(), torch.nn.Linear(t, 1, bias=False)]
            self.shares = torch.nn.Sequential(*scores, torch.nn.Softmax(dim=1))
            self.projection = torch.nn.Linear(k, 1, bias=False)
            self.compile("adam", "binary_crossentropy", task["rate"])
            self.reset_parameters()
            self.model_to_device()

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            ids = self.get_inputs(batch)
            products = self.products(self.vectors(ids))
            pooled = (self.shares(products) * products).sum(dim=1)
            return {"y_pred": self.output_activation(self.linear(ids) + self.projection(pooled))}

    model = AFM()
    model._max_gradient_norm = 10.0  # the default of fit, which is what sets it
    model.train()
    ready = cycle(
        [
            {name: torch.from_numpy(np.ascontiguousarray(ids[:, slot])) for slot, name in enumerate(names)}
            | {"label": torch.from_numpy(labels)}
            for ids, labels in batches
        ]
    )
    return lambda: model.train_step(next(ready)).item(), f"fuxictr {version('fuxictr')}, torch {torch.__version__}"


def pytorch(batches: Batches, size: int, task: dict[str, Any], compiled: bool = False) -> tuple[Step, str]:
    """AFM as one would write it: one table, all pairs laid out, fused Adam over the whole table."""
    import torch
    from torch import nn

    slots, k, t = task["slots"], task["k"], task["t"]
    device = torch.device("cuda" if task["gpu"] else "cpu")
    torch.set_num_threads(task["cores"])
    first, second = torch.triu_indices(slots, slots, 1, device=device)

    class AFM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors, self.weights = nn.Embedding(size * slots, k), nn.Embedding(size * slots, 1)
            nn.init.normal_(self.vectors.weight, std=0.01)
            nn.init.zeros_(self.weights.weight)
            self.hidden, self.score = nn.Linear(k, t), nn.Linear(t, 1, bias=False)
            self.projection, self.bias = nn.Linear(k, 1, bias=False), nn.Parameter(torch.zeros(()))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            v = self.vectors(ids)
            products = v[:, first] * v[:, second]
            shares = torch.softmax(self.score(torch.relu(self.hidden(products))), dim=1)
            pooled = self.projection((shares * products).sum(dim=1))
            return self.bias + (self.weights(ids).sum(dim=1) + pooled).squeeze(1)

    model = AFM().to(device)
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), task["rate"], fused=True)
    ready = cycle(
        [
            (torch.from_numpy(ids + size * np.arange(slots)).to(device), torch.from_numpy(labels).to(device))
            for ids, labels in batches
        ]
    )

    def run() -> float:
        ids, labels = next(ready)
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(call(ids), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run, f"torch {torch.__version__}"


CONTENDERS: dict[str, Callable[..., tuple[Step, str]]] = {
    "ours": ours,
    "deepctr": deepctr,
    "deepctr-bare": partial(deepctr, regularisers=False),
    "fuxictr": fuxictr,
    "pytorch": pytorch,
    "pytorch-compiled": partial(pytorch, compiled=True),
}


def build(contender: str, task: dict[str, Any]) -> tuple[Step, str]:
    stored = np.load(task["data"])
    batches = list(zip(stored["ids"], stored["labels"], strict=True))
    step, versions = CONTENDERS[contender](batches, task["ids"] // task["slots"], task)
    for _ in range(2):
        step()
    return step, versions


def run_for(step: Step, seconds: float) -> dict[str, float]:
    """Whole steps until the time is over, at least two."""
    steps, start, worked = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - start) < seconds or steps < 2:
        loss = step()
        steps += 1
    cpu = time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"steps": steps, "seconds": taken, "cpu": cpu, "loss": loss, "peak": peak}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step: Step | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if step is None:
            step, versions = build(sys.argv[1], command)
            answer: dict[str, Any] = {"versions": versions}
        else:
            answer = run_for(step, command["seconds"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
