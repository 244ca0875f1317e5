"""A planted log of rankings: effects of whole groups hide the order within them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N_ITEMS = 40


@dataclass
class RankingLog:
    """Rows of users who click much or little, whatever they see, and are shown the worse items the more they click. The
    columns say of a user the city alone, which tells a part of that.
    """

    columns: dict[str, list[str]]
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def draw(cls, seed: int, first_user: int, n_users: int = 300, shown: int = 12) -> RankingLog:
        """Users numbered from `first_user` on; items are the same with every seed."""
        quality = np.random.default_rng(0).normal(0, 1, N_ITEMS)
        rng = np.random.default_rng(seed)
        effects = rng.normal(0, 2.5, n_users)
        chances = np.exp(-0.8 * effects[:, None] * quality)
        chances /= chances.sum(axis=1, keepdims=True)
        items = np.concatenate([rng.choice(N_ITEMS, shown, p=each) for each in chances])
        users = np.repeat(np.arange(n_users), shown)
        labels = (rng.random(len(users)) < 1 / (1 + np.exp(-effects[users] - quality[items]))).astype(int)
        cities = (effects + rng.normal(0, 2, n_users)).round().astype(int)
        names = {"city": [f"c{city}" for city in cities[users]], "item": [f"i{item}" for item in items]}
        return cls(names, labels, users + first_user)

    def shuffled(self) -> RankingLog:
        """The rows in no order."""
        order = np.random.default_rng(5).permutation(len(self.labels))
        columns = {name: [values[row] for row in order] for name, values in self.columns.items()}
        return RankingLog(columns, self.labels[order], self.groups[order])

    def write(self, folder: Path, n_shards: int) -> Path:
        """Shards with the columns user, city, item and label, in this order of rows."""
        folder.mkdir(parents=True)
        table = pa.table({"user": self.groups, **self.columns, "label": self.labels})
        for number, rows in enumerate(np.array_split(np.arange(len(self.labels)), n_shards)):
            pq.write_table(table.take(rows), folder / f"{number}.parquet")
        return folder
