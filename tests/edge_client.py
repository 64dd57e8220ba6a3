"""The part of Qdrant's client that a store uses, over the engine of Qdrant inside this process.

The client's own local mode is a copy of the server in Python; `qdrant_edge` is the server's engine
for one shard: its storage, filters and similarity of multi-vectors. It has no shards or replicas.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qdrant_edge as edge
from qdrant_client import models


class EdgeClient:
    """Collections in folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards: dict[str, edge.EdgeShard] = {}

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
        self.shards.clear()

    def _shard(self, collection: str) -> edge.EdgeShard:
        if collection not in self.shards:
            self.shards[collection] = edge.EdgeShard.load(str(self.folder / collection))
        return self.shards[collection]

    def _update(self, collection: str, operation: edge.UpdateOperation) -> None:
        shard = self._shard(collection)
        shard.update(operation)
        shard.flush()

    def collection_exists(self, collection: str) -> bool:
        return (self.folder / collection).exists()

    def create_collection(self, collection: str, vectors_config: dict, **_: Any) -> None:
        vectors = {}
        for name, given in vectors_config.items():
            assert given.multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
            assert given.distance == models.Distance.DOT and given.datatype is None
            vectors[name] = edge.EdgeVectorParams(
                given.size,
                edge.Distance.Dot,
                multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            )
        folder = self.folder / collection
        folder.mkdir(parents=True)
        config = edge.EdgeConfig(vectors=vectors, wal_enabled=True)
        self.shards[collection] = edge.EdgeShard.create(str(folder), config)

    def create_payload_index(self, collection: str, field: str, field_schema: Any, wait: bool):
        assert field_schema == models.PayloadSchemaType.INTEGER and wait
        kind = edge.PayloadSchemaType.Integer
        self._update(collection, edge.UpdateOperation.create_field_index(field, kind))

    def upsert(self, collection: str, points: list, wait: bool, ordering: Any = None) -> None:
        assert wait
        made = [edge.Point(x.id, x.vector, x.payload) for x in points]
        self._update(collection, edge.UpdateOperation.upsert_points(made))

    def set_payload(self, collection: str, payload: dict, points: Any, wait: bool, ordering: Any):
        assert wait
        chosen = condition(points)
        self._update(collection, edge.UpdateOperation.set_payload_by_filter(chosen, payload))

    def delete(self, collection: str, points_selector: Any, wait: bool) -> None:
        assert wait
        chosen = condition(points_selector)
        self._update(collection, edge.UpdateOperation.delete_points_by_filter(chosen))

    def retrieve(
        self, collection: str, ids: list[int], with_payload: Any, with_vectors: Any = False
    ) -> list:
        return self._shard(collection).retrieve(ids, with_payload, with_vectors)

    def scroll(
        self,
        collection: str,
        scroll_filter: Any,
        limit: int,
        offset: Any,
        with_payload: Any,
        with_vectors: Any,
    ) -> tuple[list, Any]:
        request = edge.ScrollRequest(
            offset, limit, condition(scroll_filter), with_payload, with_vectors
        )
        return self._shard(collection).scroll(request)

    def query_batch_points(self, collection: str, requests: list) -> list:
        shard = self._shard(collection)
        return [SimpleNamespace(points=shard.query(query(request))) for request in requests]


def query(request: models.QueryRequest) -> edge.QueryRequest:
    params = request.params or models.SearchParams(exact=False)
    return edge.QueryRequest(
        limit=request.limit,
        query=edge.Query.Nearest(request.query, request.using),
        with_vector=request.with_vector,
        with_payload=request.with_payload,
        filter=condition(request.filter),
        params=edge.SearchParams(params.hnsw_ef, bool(params.exact)),
    )


def condition(given: Any) -> Any:
    """A condition of the client as one of the engine."""
    if isinstance(given, models.Filter):
        parts = (given.must, given.should, given.must_not)
        return edge.Filter(*(None if x is None else [condition(y) for y in x] for x in parts))
    if isinstance(given, models.HasIdCondition):
        return edge.HasIdCondition(set(given.has_id))
    if isinstance(given.match, models.MatchValue):
        return edge.FieldCondition(given.key, match=edge.MatchValue(given.match.value))
    if isinstance(given.match, models.MatchAny):
        return edge.FieldCondition(given.key, match=edge.MatchAny(given.match.any))
    return edge.FieldCondition(given.key, range=edge.RangeFloat(lte=given.range.lte))
