"""Trains one of FuxiCTR's models for ``run.py``, under the interpreter of FuxiCTR's own environment.

It reads one JSON object from standard input: ``model`` and its ``config``, ``fields``, ``rows`` (a file a split),
``threads`` and ``runs``, a seed and a folder each. A run that is trained already is not trained again; every split
that has no ``scores-<split>.npz`` in a run's folder is scored with the weights of the best epoch.

FuxiCTR's package has the layers, the training loop, the early stopping and the regulariser, but FM, AFM, DeepFM and
DCNv2 are in the model zoo of its repository: here they are put together of the same layers of the package. Its reader
hands rows one by one to Python; here whole batches are taken from arrays, shuffled anew in each epoch.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, whose files are no modules of anybody

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import nn

LABEL = "label"
SCORING_BATCH = 8192


class Batches:
    """Batches of a split, as FuxiCTR's loop takes them: an iterable of dicts of tensors, with a length."""

    def __init__(self, file: str, batch_size: int, shuffle: bool) -> None:
        with np.load(file) as stored:
            self.columns = {name: torch.from_numpy(stored[name]) for name in stored.files}
        self.rows = len(self.columns[LABEL])
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(self.rows) if self.shuffle else torch.arange(self.rows)
        for chosen in order.split(self.batch_size):
            yield {name: column[chosen] for name, column in self.columns.items()}


def feature_map(fields: list[dict[str, Any]], width: int) -> FeatureMap:
    found = FeatureMap("rows", "")
    found.labels, found.num_fields, found.default_emb_dim = [LABEL], len(fields), width
    specs = OrderedDict()
    for field in fields:
        spec: dict[str, Any] = {"type": field["type"], "source": ""}
        if field["type"] != "numeric":
            spec["vocab_size"] = field["size"]
        if field["padded"]:
            spec["padding_idx"] = 0
        if field["type"] == "sequence":
            spec |= {"feature_encoder": "layers.MaskedAveragePooling()", "max_len": field["length"]}
        specs[field["name"]] = spec
    found.features = specs
    return found


class Peer(BaseModel):
    """What the models share: FuxiCTR's loop, which also writes down what it saw after each epoch."""

    def __init__(self, fields: FeatureMap, config: dict[str, Any], folder: Path) -> None:
        shared = {key: config[key] for key in ("embedding_regularizer", "net_regularizer") if key in config}
        shared["early_stop_patience"] = config.get("early_stop_patience", 2)
        super().__init__(
            fields, model_id="best", model_root=str(folder), metrics=["AUC"], monitor="AUC", verbose=0, **shared
        )
        self.history, self.folder, self.began = [], folder, time.monotonic()
        (folder / fields.dataset_id).mkdir(parents=True, exist_ok=True)
        self.make(fields, config)
        self.compile("adam", "binary_crossentropy", config["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def make(self, fields: FeatureMap, config: dict[str, Any]) -> None:
        raise NotImplementedError

    def logits(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y_pred": self.output_activation(self.logits(self.get_inputs(batch)))}

    def eval_step(self) -> None:
        if self.valid_gen is not None:
            super().eval_step()
            return
        self.save_weights(self.checkpoint)  # nothing to choose an epoch by: the last one counts
        self.note({})

    def checkpoint_and_earlystop(self, logs: dict[str, float], min_delta: float = 1e-6) -> None:
        super().checkpoint_and_earlystop(logs, min_delta)
        self.note({"val_auc": float(logs["AUC"])})

    def note(self, figures: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        self.history.append({"epoch": self._epoch_index, "seconds": seconds, **figures})
        lines = "".join(f"{json.dumps(one)}\n" for one in self.history)
        (self.folder / "history.jsonl").write_text(lines)


class FM(Peer):
    def make(self, fields: FeatureMap, config: dict[str, Any]) -> None:
        self.vectors = FeatureEmbedding(fields, config["embedding_dim"])
        self.fm = FactorizationMachine(fields)

    def logits(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.fm(ids, self.vectors(ids))


class AFM(Peer):
    def make(self, fields: FeatureMap, config: dict[str, Any]) -> None:
        k, t = config["embedding_dim"], config["attention_dim"]
        self.vectors = FeatureEmbedding(fields, k)
        self.linear = LogisticRegression(fields)
        self.products = InnerProductInteraction(fields.num_fields, output="elementwise_product")
        scores = [nn.Linear(k, t), nn.ReLU(), nn.Linear(t, 1, bias=False), nn.Softmax(dim=1)]
        self.shares = nn.Sequential(*scores)
        self.projection = nn.Linear(k, 1, bias=False)
        self.drop_shares, self.drop_pooled = (nn.Dropout(rate) for rate in config["attention_dropout"])

    def logits(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        products = self.products(self.vectors(ids))
        pooled = (self.drop_shares(self.shares(products)) * products).sum(dim=1)
        return self.linear(ids) + self.projection(self.drop_pooled(pooled))


class DeepFM(Peer):
    def make(self, fields: FeatureMap, config: dict[str, Any]) -> None:
        self.vectors = FeatureEmbedding(fields, config["embedding_dim"])
        self.fm = FactorizationMachine(fields)
        self.network = MLP_Block(
            input_dim=fields.num_fields * config["embedding_dim"],
            output_dim=1,
            hidden_units=config["hidden_units"],
            dropout_rates=config["net_dropout"],
            batch_norm=config["batch_norm"],
        )

    def logits(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = self.vectors(ids)
        return self.fm(ids, vectors) + self.network(vectors.flatten(start_dim=1))


class DCNv2(Peer):
    """Cross layers and a network side by side: the paper's parallel form."""

    def make(self, fields: FeatureMap, config: dict[str, Any]) -> None:
        self.vectors = FeatureEmbedding(fields, config["embedding_dim"])
        width = fields.num_fields * config["embedding_dim"]
        self.crosses = CrossNetV2(width, config["cross_layers"])
        self.network = MLP_Block(
            input_dim=width,
            hidden_units=config["hidden_units"],
            dropout_rates=config["net_dropout"],
            batch_norm=config["batch_norm"],
        )
        self.sum = nn.Linear(width + config["hidden_units"][-1], 1)

    def logits(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        flat = self.vectors(ids).flatten(start_dim=1)
        return self.sum(torch.cat([self.crosses(flat), self.network(flat)], dim=1))


MODELS: dict[str, type[Peer]] = {"FM": FM, "AFM": AFM, "DeepFM": DeepFM, "DCNv2": DCNv2}


def train(model: Peer, rows: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end, with the weights of the best epoch afterwards."""
    valid = Batches(rows["valid"], SCORING_BATCH, False) if config.get("validation", True) else None
    model.fit(Batches(rows["train"], config["batch_size"], True), epochs=config["epochs"], validation_data=valid)
    seen = [epoch.get("val_auc", 0.0) for epoch in model.history]
    best = int(np.argmax(seen)) if valid is not None else len(seen) - 1
    return {"epochs": len(seen), "best_epoch": best + 1, "seconds": model.history[-1]["seconds"]}


def write(file: Path, **arrays: np.ndarray) -> None:
    temporary = file.with_name(f".tmp-{file.name}")
    np.savez(temporary, **arrays)
    temporary.replace(file)


def run(task: dict[str, Any], seed: int, folder: Path) -> None:
    config = task["config"]
    seed_everything(seed)
    model = MODELS[config["model"]](feature_map(task["fields"], config["embedding_dim"]), config, folder)
    done = folder / "run.json"
    if done.exists():
        model.load_weights(model.checkpoint)
    else:
        found = train(model, task["rows"], config)
        versions = f"fuxictr {version('fuxictr')}, torch {torch.__version__}"
        temporary = folder / ".tmp-run.json"
        temporary.write_text(json.dumps({**found, "versions": versions, "history": model.history}))
        temporary.replace(done)
    model.output_activation = nn.Identity()  # a probability in float32 is 1 from a logit of 17 on
    for split in task["score"]:
        if not (folder / f"scores-{split}.npz").exists():
            scores = model.predict(Batches(task["rows"][split], SCORING_BATCH, False))
            write(folder / f"scores-{split}.npz", logits=scores)


def main() -> None:
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    for one in task["runs"]:
        run(task, one["seed"], Path(one["folder"]))


if __name__ == "__main__":
    main()
