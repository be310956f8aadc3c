"""The parts of a model: a network before its training, an artefact after it."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from model import artifact
from model.artifact import Artifact, Described, Golden, Manifest, TrainingRange
from model.config import PRESETS, NextMoveConfig, rows_of
from model.engine import GOLDEN_TOP_K, Engine
from model.learner import Learner
from model.material import Material, log_lift, log_share
from model.network import NextMoveModel
from model.order import Order, TrainingError
from model.prices import BUCKETS
from model.recipe import SPARSE, Recipe
from model.sequences import window_list

GOLDEN_WINDOWS = 8


def new_model(material: Material, preset: str, recipe: Recipe = SPARSE, backbone: str = "nextmove") -> NextMoveModel:
    """A network that begins with the frequencies of the log as its biases."""
    vocabulary = material.vocabulary
    config = NextMoveConfig(
        session_gap_ms=material.rule.session_gap_ms,
        backbone=backbone,
        positions=material.rule.events,
        copy=material.repeats(),
        price_buckets=1 + BUCKETS if len(material.item_buckets) else 0,
        texts=0 if material.text is None else len(material.text.vectors),
        text_width=0 if material.text is None else material.text.vectors.shape[1],
        dropout=recipe.dropout,
        unknown_items=recipe.mask_items,
        unknown_categories=recipe.mask_categories,
        **rows_of(vocabulary),
        **PRESETS[preset],
    )
    model = NextMoveModel(config)
    inside = material.inside()
    with torch.no_grad():
        model.item_bias.copy_(log_share(material.item_rows[inside], config.item_first, config.item_rows))
        model.category_bias.copy_(
            log_share(material.category_rows[inside], config.category_first, config.category_rows)
        )
        model.item_categories[vocabulary.items.first :] = torch.tensor(vocabulary.item_categories, dtype=torch.int64)
        behaviors = material.columns.behavior_rows[inside]
        shares = log_share(behaviors, config.behavior_first, config.behavior_rows)[1:]
        model.behavior_head.bias.copy_(shares)
        model.behavior_after.copy_(log_lift(*material.behavior_steps(), shares, config.behavior_rows))
        if model.item_buckets is not None:
            model.item_buckets[vocabulary.items.first :] = torch.from_numpy(material.item_buckets)
        if model.described is not None and material.text is not None:
            counts = np.array(vocabulary.item_counts, np.int64)
            model.described.fill(material.text.vectors, material.item_texts, ~material.rare, counts)
    return model


def assemble(learner: Learner, order: Order, epochs: int) -> Artifact:
    """The parts of an artefact, without golden answers and figures; raises TrainingError where no epoch ended with a number."""
    if epochs == 0:
        raise TrainingError("training diverged: the loss is not a number")
    material = learner.material
    inside = material.inside()
    times = material.data.times_ms[inside]
    manifest = Manifest(
        schema=artifact.SCHEMA,
        version="",
        window=order.window,
        behaviors=list(material.vocabulary.behaviors.names),
        goal=order.goal,
        goal_horizon_ms=material.horizons.goal_ms,
        churn_horizon_ms=material.horizons.churn_ms,
        training=TrainingRange(
            events=int(inside.sum()),
            users=len(np.unique(material.data.users[inside])),
            from_ms=int(times.min()),
            until_ms=int(times.max()),
            preset=order.preset,
            seed=order.seed,
            epochs=epochs,
            protocol=order.protocol,
            backbone=order.backbone,
            older=None if order.warm is None else artifact.read_manifest(order.warm.directory).version,
        ),
        metrics={},
        popular_items=material.vocabulary.popular_items(),
        golden=[],
        described=described(material),
    )
    return Artifact(learner.model.eval(), material.vocabulary, manifest)


def described(material: Material) -> Described | None:
    """Which items have a text."""
    if material.text is None:
        return None
    has, counts = material.item_texts >= 0, np.array(material.vocabulary.item_counts, np.int64)
    return Described(
        encoder=material.text.encoder,
        texts=len(material.text.vectors),
        items=int(has.sum()),
        unmet=int((has & (counts == 0)).sum()),
    )


def with_golden(parts: Artifact, material: Material) -> Artifact:
    """The same parts with a few windows of the training range and the answers to them."""
    places = np.linspace(0, len(material.data) - 1, GOLDEN_WINDOWS).astype(np.int64)
    windows = window_list(material.data, np.unique(places).tolist(), material.rule)
    parts = msgspec.structs.replace(parts, model=parts.model.cpu())
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    golden = [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden))
