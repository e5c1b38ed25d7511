from __future__ import annotations

import numpy as np
import pytest
import torch

from hssl.errors import StoreError
from hssl.metrics import IGNORE
from hssl.store import Split
from hssl.training.data import FLAT, FinetuneData, cut, drawn_slices, pretrain_windows


def flat(batch):
    """All tensors of a batch."""
    return [*batch[:-1], *batch[-1]] if isinstance(batch[-1], tuple) else [*batch]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


def test_a_batch_is_a_function_of_seed_and_step(make_store, pretrain_config):
    store = make_store({"A": 5, "B": 5})
    config = pretrain_config(batch_size=8)
    data = pretrain_windows(store, ["A", "B"], config)
    _ = [data[step] for step in (3, 0, 1)]  # what came before must not matter
    assert same(data[2], pretrain_windows(store, ["A", "B"], config)[2])
    assert not same(data[2], data[3])
    assert not same(data[2], pretrain_windows(store, ["A", "B"], pretrain_config(batch_size=8, seed=1))[2])


def test_a_batch_does_not_depend_on_the_length_of_the_run(make_store, pretrain_config):
    store = make_store({"A": 5, "B": 5})
    short, long = (pretrain_windows(store, ["A", "B"], pretrain_config(steps=steps)) for steps in (6, 60))
    assert same(short[5], long[5])
    assert (len(short), len(long)) == (6, 60)


def test_types_and_shapes(make_store, pretrain_config):
    batch = pretrain_windows(make_store({"A": 5, "B": 5}), ["A", "B"], pretrain_config(batch_size=6))[0]
    assert batch.window.shape == (6, 1, 24, 24)
    assert batch.window.dtype == torch.float16
    assert {
        part.dtype for part in (batch.origin.task, batch.origin.subject, batch.origin.case, batch.origin.slice)
    } == {torch.int64}
    assert batch.origin.position.dtype == torch.float32
    torch.testing.assert_close(batch.origin.position, batch.origin.slice / 4)


def test_ranks_share_out_the_global_batch(make_store, pretrain_config):
    store = make_store({"A": 6, "B": 6})
    config = pretrain_config(batch_size=8)
    whole = pretrain_windows(store, ["A", "B"], config)
    ranks = [pretrain_windows(store, ["A", "B"], config, rank=rank, world_size=2) for rank in range(2)]
    for step in range(3):
        for everything, *parts in zip(flat(whole[step]), *(flat(rank[step]) for rank in ranks), strict=True):
            assert torch.equal(everything[0::2], parts[0])
            assert torch.equal(everything[1::2], parts[1])


def test_only_training_subjects_are_seen(make_store, pretrain_config):
    store = make_store({"A": 6, "B": 4})
    data = pretrain_windows(store, ["A", "B"], pretrain_config(batch_size=8))
    seen = {data.cases[case].subject for step in range(6) for case in data[step].origin.case.tolist()}
    assert seen == {*store.split("A").train, *store.split("B").train}


def test_no_mask_is_read(make_store, pretrain_config, monkeypatch):
    store = make_store()
    monkeypatch.setattr(type(store), "label", lambda *_: pytest.fail("a mask was read"))
    pretrain_windows(store, ["Blobs"], pretrain_config())[0]


def test_rows_name_the_image_that_they_show(make_store, pretrain_config):
    store = make_store({"A": 5, "B": 5}, shape=(5, 24, 24))
    data = pretrain_windows(store, ["B", "A"], pretrain_config(batch_size=8))
    batch = data[0]
    origin = batch.origin
    for window, task, case, index in zip(batch.window, origin.task, origin.case, origin.slice, strict=True):
        record = data.cases[case]
        assert record.task == ["B", "A"][task]
        np.testing.assert_array_equal(window[0].numpy(), store.image(record)[index])
    assert len(set(zip(origin.subject.tolist(), origin.task.tolist(), strict=True))) == len(
        set(origin.subject.tolist())
    )


def test_the_frame_tells_where_a_window_lies(make_store, pretrain_config):
    rows, columns = 28, 48
    row, column = np.mgrid[:rows, :columns]
    ramp = np.stack([(row + 0.5) / rows, (column + 0.5) / columns]).astype(np.float16)
    store = make_store({"Blobs": 6}, shape=(2, rows, columns), images={f"blobs{number}": ramp for number in range(6)})
    batch = pretrain_windows(store, ["Blobs"], pretrain_config())[0]
    size = batch.window.shape[-1]
    across = (torch.arange(size) + 0.5) / size * 2 - 1
    for window, index, ((left, width), (top, height)) in zip(
        batch.window, batch.origin.slice, batch.origin.frame, strict=True
    ):
        expected = (top + height * across)[:, None] if index == 0 else (left + width * across)[None]
        shown = window[0].float()
        inside = shown > 0  # beyond the edge of the slice a window is 0
        torch.testing.assert_close(shown[inside], expected.expand_as(shown)[inside], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("task_sampling_exponent", "expected"), [(0.0, (1 / 2, 1 / 2)), (0.5, (3 / 5, 2 / 5)), (1.0, (9 / 13, 4 / 13))]
)
def test_tempering(make_store, pretrain_config, task_sampling_exponent, expected):
    store = make_store({"A": 5, "B": 5}, shapes={"A": (9, 28, 32), "B": (4, 28, 32)})
    data = pretrain_windows(store, ["A", "B"], pretrain_config(task_sampling_exponent=task_sampling_exponent))
    np.testing.assert_allclose(data.task_weights, expected)


def test_tempering_decides_how_often_a_task_comes(make_store, pretrain_config):
    store = make_store({"A": 5, "B": 5}, shapes={"A": (27, 8, 8), "B": (3, 8, 8)})
    config = pretrain_config(task_sampling_exponent=1.0, domains_per_batch=1, batch_size=1)
    data = pretrain_windows(store, ["A", "B"], config)
    share = np.mean([data[step].origin.task.item() == 0 for step in range(400)])
    assert abs(share - 0.9) < 0.05


@pytest.mark.parametrize("domains", [1, 2, 3])
def test_domains_per_batch(make_store, pretrain_config, domains):
    store = make_store({"A": 5, "B": 5, "C": 5})
    data = pretrain_windows(store, ["A", "B", "C"], pretrain_config(batch_size=6, domains_per_batch=domains))
    for step in range(4):
        tasks = data[step].origin.task.tolist()
        assert [tasks.count(task) for task in set(tasks)] == [6 // domains] * domains


def test_more_domains_than_tasks_is_all_tasks(make_store, pretrain_config):
    data = pretrain_windows(make_store({"A": 5}), ["A"], pretrain_config(domains_per_batch=3))
    assert data[0].origin.task.tolist() == [0] * 4


def test_no_more_domains_than_images(make_store, pretrain_config):
    store = make_store({"A": 5, "B": 5})
    data = pretrain_windows(store, ["A", "B"], pretrain_config(batch_size=1, domains_per_batch=2))
    assert data[0].origin.task.shape == (1,)


def test_every_subject_before_any_comes_twice(make_store, pretrain_config):
    store = make_store({"A": 6})  # four to train on
    data = pretrain_windows(store, ["A"], pretrain_config(batch_size=6))
    for step in range(5):
        subjects = data[step].origin.subject.tolist()
        assert sorted(subjects[:4]) == [0, 1, 2, 3]
        assert len(set(subjects[4:])) == 2


def test_a_task_without_training_subjects(make_store, pretrain_config):
    store = make_store(splits={"Blobs": Split(train=[], val=[], test=["blobs0"])})
    with pytest.raises(StoreError, match="'Blobs' has no training subjects"):
        pretrain_windows(store, ["Blobs"], pretrain_config())


def test_flat_slices_are_avoided(make_store, pretrain_config):
    rng = np.random.default_rng(0)
    image = np.zeros((4, 28, 32), np.float16)
    image[1:3] = rng.random((2, 28, 32))
    store = make_store({"A": 3}, images={"a0": image})
    data = pretrain_windows(store, ["A"], pretrain_config(batch_size=1))
    flat = sum(float(image[data[step].origin.slice.item()].std(dtype=np.float32)) <= FLAT for step in range(100))
    assert flat < 15  # half of the slices are flat; five tries leave one in 32
    assert FLAT > 0


def test_a_volume_of_flat_slices_is_still_drawn(make_store, pretrain_config):
    store = make_store({"A": 3}, images={"a0": np.zeros((4, 28, 32), np.float16)})
    assert float(pretrain_windows(store, ["A"], pretrain_config())[0].window.abs().max()) == 0


IMAGE = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("corner", "expected"),
    [
        ((0, 0), [[1, 2], [5, 6]]),
        ((1, 2), [[7, 8], [11, 12]]),
        ((-1, -1), [[0, 0], [0, 1]]),
        ((-1, 3), [[0, 0], [4, 0]]),
        ((2, -1), [[0, 9], [0, 0]]),
        ((2, 3), [[12, 0], [0, 0]]),
        ((3, 0), [[0, 0], [0, 0]]),
        ((0, 4), [[0, 0], [0, 0]]),
        ((-2, 0), [[0, 0], [0, 0]]),
        ((0, -5), [[0, 0], [0, 0]]),
    ],
)
def test_cut(corner, expected):
    window = cut(IMAGE, corner, 2)
    np.testing.assert_array_equal(window, expected)
    assert window.dtype == np.uint8


def test_cut_around_a_small_image():
    window = cut(IMAGE, (-1, -2), 6)
    np.testing.assert_array_equal(window[1:4, 2:6], IMAGE)
    assert window.sum() == IMAGE.sum()


def test_a_window_shows_the_whole_of_a_small_image(make_store, pretrain_config):
    store = make_store({"A": 6}, shape=(5, 10, 40))
    data = pretrain_windows(store, ["A"], pretrain_config(batch_size=4))
    tops = set()
    for step in range(8):
        batch = data[step]
        for window, case, index in zip(batch.window, batch.origin.case, batch.origin.slice, strict=True):
            rows = np.flatnonzero(window[0].numpy().any(1))
            image = store.image(data.cases[case])[index]
            tops.add(rows[0])
            assert rows[-1] - rows[0] < 10
            # 10 rows all there, and 24 of the 40 columns that follow each other.
            shown = window[0].numpy()[rows[0] : rows[0] + 10]
            assert any(np.array_equal(shown, image[:, left : left + 24]) for left in range(17))
    assert len(tops) > 3


def test_fine_tuning_reads_only_the_given_subjects(make_store, finetune_config, monkeypatch):
    store = make_store()
    chosen = ["blobs1", "blobs3"]
    read = []
    for kind in ("image", "label"):
        original = getattr(type(store), kind)

        def watched(self, record, original=original):
            read.append(record.subject)
            return original(self, record)

        monkeypatch.setattr(type(store), kind, watched)
    data = FinetuneData(store, chosen, finetune_config(batch_size=8))
    _ = [data[step] for step in range(3)]
    assert set(read) == set(chosen)


def test_fine_tuning_batches(make_store, finetune_config):
    store = make_store()
    data, again = (FinetuneData(store, ["blobs0", "blobs1"], finetune_config(batch_size=4)) for _ in range(2))
    batch, unlabelled = data[3]
    assert unlabelled == {}
    assert batch.window.shape == (4, 1, 24, 24)
    assert (batch.window.dtype, batch.label.dtype) == (torch.float16, torch.uint8)
    assert batch.label.shape == (4, 24, 24)
    assert same(batch, again[3].labelled)
    assert not same(batch, data[4].labelled)
    # Mask and image are cut at the same place: the square is bright.
    inside = batch.window[:, 0][batch.label == 1].float()
    assert inside.min() > 0.3 > batch.window[:, 0][batch.label == 0].float().max()


def test_ranks_share_the_labelled_patches_of_one_batch(make_store, finetune_config):
    store, config = make_store(), finetune_config(batch_size=6)
    whole = FinetuneData(store, ["blobs0", "blobs1"], config)[3].labelled
    for rank in range(3):
        part = FinetuneData(store, ["blobs0", "blobs1"], config, rank=rank, world_size=3)[3].labelled
        assert torch.equal(part.window, whole.window[rank::3])
        assert torch.equal(part.label, whole.label[rank::3])


def test_windows_without_masks_leave_the_labelled_patches_as_they_are(make_store, finetune_config, pretrain_config):
    store = make_store()
    windows = pretrain_windows(store, ("Blobs",), pretrain_config(batch_size=6))
    alone = FinetuneData(store, ["blobs0"], finetune_config(batch_size=4))[3]
    both = FinetuneData(store, ["blobs0"], finetune_config(batch_size=4), unlabelled={"pretext": windows})[3]
    assert same(alone.labelled, both.labelled)
    assert same(both.unlabelled["pretext"], windows[3])


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_foreground_patches_are_centred_on_a_label(make_store, finetune_config, foreground):
    store = make_store(shape=(5, 64, 64))
    data = FinetuneData(store, store.split("Blobs").train, finetune_config(batch_size=16, foreground=foreground))
    centre = torch.cat([data[step].labelled.label[:, 12, 12] for step in range(4)]).float().mean()
    assert centre == 1 if foreground else centre < 0.3


def test_rare_labels_are_centred_as_often_as_common_ones(make_store, finetune_config):
    store = make_store()
    store.tasks["Blobs"].labels[2] = "dot"
    label = np.zeros((5, 28, 32), np.uint8)
    label[:, 4:20, 4:20] = 1
    label[2, 25, 28] = 2
    np.save(store.path / "labels" / "Blobs" / "blobs0.npy", label)
    data = FinetuneData(store, ["blobs0"], finetune_config(batch_size=16, foreground=1.0))
    centres = torch.cat([data[step].labelled.label[:, 12, 12] for step in range(8)])
    assert 0.35 < float((centres == 2).float().mean()) < 0.65


def test_fine_tuning_on_an_empty_mask(make_store, finetune_config):
    store = make_store()
    np.save(store.path / "labels" / "Blobs" / "blobs0.npy", np.zeros((5, 28, 32), np.uint8))
    assert int(FinetuneData(store, ["blobs0"], finetune_config(foreground=1.0))[0].labelled.label.max()) == 0


def test_no_masks_to_fine_tune_on(make_store, finetune_config):
    store = make_store(unlabelled={"Blobs": (0,)})
    with pytest.raises(StoreError, match="has no masks of the chosen subjects"):
        FinetuneData(store, ["blobs0"], finetune_config())


# Masks that are drawn in part


def test_slices_that_are_drawn_are_evenly_spread(make_store):
    task = make_store().tasks["Blobs"]
    label = np.ones((10, 4, 4), np.uint8)
    assert drawn_slices(label, task, None).tolist() == list(range(10))
    assert drawn_slices(label, task, 2).tolist() == [2, 7]
    assert drawn_slices(label, task, 5).tolist() == [1, 3, 5, 7, 9]
    assert drawn_slices(label, task, 1).tolist() == [5]
    assert drawn_slices(label, task, 11).tolist() == list(range(10))
    ignoring = task.model_copy(update={"ignore": 9})
    label[[0, 1, 2, 3, 9]] = 9
    label[4, 0, 0] = 9
    assert drawn_slices(label, ignoring, None).tolist() == [4, 5, 6, 7, 8]
    assert drawn_slices(label, ignoring, 1).tolist() == [6]


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_only_drawn_slices_are_trained_on(make_store, finetune_config, monkeypatch, foreground):
    store = make_store(shape=(9, 28, 32))
    read, label_slice = set(), type(store).label_slice
    monkeypatch.setattr(
        type(store), "label_slice", lambda self, case, index: read.add(index) or label_slice(self, case, index)
    )
    config = finetune_config(batch_size=8, labelled_slices=3, foreground=foreground)
    data = FinetuneData(store, ["blobs0", "blobs1"], config)
    _ = [data[step] for step in range(4)]
    assert read == {1, 4, 7}


def test_what_nobody_has_drawn_is_ignored(make_store, finetune_config):
    store = make_store()
    store.index.tasks["Blobs"] = store.tasks["Blobs"].model_copy(update={"ignore": 7})
    label = np.full((5, 28, 32), 7, np.uint8)
    label[2] = 0
    label[2, 4:12, 4:12] = 1
    label[2, :, 20:] = 7
    np.save(store.path / "labels" / "Blobs" / "blobs0.npy", label)
    data = FinetuneData(store, ["blobs0"], finetune_config(batch_size=8))
    values = torch.cat([data[step].labelled.label for step in range(4)])
    assert values.unique().tolist() == [0, 1, IGNORE]
    np.save(store.path / "labels" / "Blobs" / "blobs0.npy", np.full_like(label, 7))
    with pytest.raises(StoreError, match="no slice of the chosen subjects is annotated"):
        FinetuneData(store, ["blobs0"], finetune_config())
