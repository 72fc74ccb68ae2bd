"""The model as a good tutorial would serve it: an `nn.Module`, ids through Python dictionaries, scores as a list.

Each user's history waits in a dictionary as a tensor of table rows. That is an advantage over the real service, which
looks histories up in a store and translates their ids in every request. The limits of a request are the service's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.serving.requests import ServingWorkload, item_id, user_id
from service.limits import MAX_ID_LENGTH, MAX_ITEMS

MAX_BATCH = 16
"""Requests that a server with batching scores together at most."""
BATCH_SECONDS = 0.002
"""How long it waits for more requests."""
MODEL_FILE = "model.safetensors"

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]


def save_model(folder: Path, params: Mapping[str, Tensor], workload: ServingWorkload) -> None:
    """Write the parameters and the users' clicks into a folder, for a `Predictor`."""
    tensors = {**params, "users": torch.from_numpy(workload.users), "histories": torch.from_numpy(workload.histories)}
    save_file(tensors, folder / MODEL_FILE)


class PredictRequest(BaseModel):
    """Asks for the click probabilities of some items."""

    user_id: Id
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)]


class PredictResponse(BaseModel):
    """The document that the real service answers with."""

    model_version: int
    period: int
    scores: list[float]
    cold_user: bool
    cold_items: list[int]
    history: str
    request_id: str


class ClickModel(nn.Module):
    """user | mean of history | item → MLP → click probability."""

    def __init__(self, user: Tensor, item: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.user = nn.Embedding.from_pretrained(user)
        self.item = nn.Embedding.from_pretrained(item)
        modules: list[nn.Module] = []
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            modules += [linear, nn.ReLU()]
        self.mlp = nn.Sequential(*modules[:-1])

    def forward(self, user: Tensor, history: Tensor, items: Tensor) -> Tensor:
        """Probabilities [N] of one user's row [], the rows of the history [H] and those of the items [N]."""
        n = len(items)
        pooled = self.item(history).mean(0)
        x = torch.cat([self.user(user).expand(n, -1), pooled.expand(n, -1), self.item(items)], 1)
        return torch.sigmoid(self.mlp(x)).squeeze(1)

    def forward_batch(self, users: Tensor, histories: Tensor, items: Tensor, counts: Tensor) -> Tensor:
        """Probabilities [ΣN] of several requests.

        Args:
            users: row of each request's user, [B].
            histories: rows of each request's history, [B, H].
            items: rows of all candidates, one request after the other, [ΣN].
            counts: candidates of each request, [B].
        """
        both = torch.cat([self.user(users), self.item(histories).mean(1)], 1)
        x = torch.cat([both.repeat_interleave(counts, 0), self.item(items)], 1)
        return torch.sigmoid(self.mlp(x)).squeeze(1)


class Predictor:
    """The model with all it needs to answer a request."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # a prediction is small: more threads would get in each other's way
        tensors = load_file(folder / MODEL_FILE)
        users, histories = tensors.pop("users"), tensors.pop("histories")
        layers = sorted(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))
        self.model = ClickModel(
            tensors["user"], tensors["item"], [(tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in layers]
        ).eval()
        self.user_rows = {user_id(row): row for row in range(1, len(tensors["user"]))}
        self.item_rows = {item_id(row): row for row in range(1, len(tensors["item"]))}
        self.histories = {user_id(row): rows for row, rows in zip(users.tolist(), histories, strict=True)}
        self.no_history = torch.zeros(histories.shape[1], dtype=torch.int64)  # of a user who is never asked for here

    @torch.inference_mode()
    def predict(self, user_id: str, items: Sequence[str]) -> list[float]:
        """The scores of one request."""
        user = torch.tensor(self.user_rows.get(user_id, 0))
        rows = torch.tensor([self.item_rows.get(item, 0) for item in items])
        scores: list[float] = self.model(user, self.histories.get(user_id, self.no_history), rows).tolist()
        return scores

    @torch.inference_mode()
    def predict_batch(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """The scores of several requests, computed together."""
        users = torch.tensor([self.user_rows.get(user, 0) for user, _ in requests])
        histories = torch.stack([self.histories.get(user, self.no_history) for user, _ in requests])
        rows = torch.tensor([self.item_rows.get(item, 0) for _, items in requests for item in items])
        counts = [len(items) for _, items in requests]
        scores = self.model.forward_batch(users, histories, rows, torch.tensor(counts)).tolist()
        found, start = [], 0
        for count in counts:
            found.append(scores[start : start + count])
            start += count
        return found

    def document(self, user_id: str, items: Sequence[str], scores: list[float]) -> dict[str, object]:
        """The answer to a request, as `PredictResponse` has it."""
        return {
            "model_version": 1,
            "period": 1,
            "scores": scores,
            "cold_user": user_id not in self.user_rows,
            "cold_items": [i for i, item in enumerate(items) if item not in self.item_rows],
            "history": "used",
            "request_id": uuid4().hex,
        }
