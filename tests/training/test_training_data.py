"""Order, randomness and completeness of training and evaluation samples, from a data set or a stream."""

import io
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageColumn
from datasets.distributed import split_dataset_by_node
from PIL import Image

from clustr_hf import ClusTRImageProcessor
from clustr_hf.training.data.decoding import UnreadableSample, decode_image, decode_rgb
from clustr_hf.training.data.loaders import (
    LoaderOptions,
    TrainingBatches,
    collate,
    evaluation_loader,
    training_loader,
)
from clustr_hf.training.data.samples import EvaluationSamples, TrainingData, TrainingSamples, spread_evenly
from clustr_hf.training.data.streams import StreamedBatches
from clustr_hf.training.tasks.image_classification.data import ClassificationDataArguments
from clustr_hf.training.tasks.image_classification.model import resized_processor
from clustr_hf.training.tasks.image_classification.trainer import add_transforms
from clustr_hf.training.tasks.image_classification.transforms import (
    ReadRow,
    evaluation_transform,
    training_transform,
)


def reader(broken=()):
    """Reads an index i, or a row that holds it, as i."""

    def read(index_or_row):
        index = index_or_row["row"] if isinstance(index_or_row, dict) else index_or_row
        if index in broken:
            raise UnreadableSample(f"sample {index} is broken")
        return index

    return read


def same(sample):
    return sample


def with_noise(sample):
    """The sample, and a random number from each generator that augmentation may use."""
    return sample, torch.rand(1).item(), np.random.rand(), random.random(), random.gauss(0, 1)


def generator_states():
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2:], torch.get_rng_state().tolist()


def flat(batches):
    return [key for batch in batches for key in batch]


@pytest.mark.parametrize("num_samples", [48, 50])
def test_an_epoch_draws_every_index_once_in_whole_batches(num_samples):
    batches = TrainingBatches(num_samples, train_batch_size=16, micro_batch_size=8, seed=0)
    drawn = list(batches)
    assert [len(batch) for batch in drawn] == [8] * 6 and len(batches) == 6
    indices = [index for index, _ in flat(drawn)]
    assert len(set(indices)) == 48 and set(indices) <= set(range(num_samples))
    assert len({seed for _, seed in flat(drawn)}) == 48


def test_samples_beyond_the_last_batch_change_from_epoch_to_epoch():
    batches = TrainingBatches(20, train_batch_size=16, micro_batch_size=16, seed=0)
    drawn = set()
    for epoch in range(5):
        batches.set_position(epoch, 0)
        drawn |= {index for index, _ in flat(batches)}
    assert drawn == set(range(20))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_together_draw_what_one_would(num_processes, repeats):
    arguments = dict(num_samples=50, train_batch_size=16, micro_batch_size=8, seed=3, repeats=repeats)
    alone = list(TrainingBatches(**arguments))
    shares = [list(TrainingBatches(**arguments, process_index=i, num_processes=num_processes)) for i in range(4)]
    together = list(zip(*shares[:num_processes]))
    assert len(together) == len(alone)
    for one, parts in zip(alone, together):
        assert {len(part) for part in parts} == {8 // num_processes}
        assert Counter(flat(parts)) == Counter(one)


def test_repeats_of_a_sample_go_to_different_processes():
    for process in range(4):
        batches = TrainingBatches(48, 16, 16, seed=0, repeats=3, process_index=process, num_processes=4)
        for batch in batches:
            assert len({index for index, _ in batch}) == len(batch) == 4


def test_order_and_seeds_are_a_function_of_seed_and_epoch():
    drawn = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        batches = TrainingBatches(48, 16, 8, seed)
        batches.set_position(epoch, 0)
        drawn[seed, epoch] = flat(batches)
        assert flat(batches) == drawn[seed, epoch]
    for part in range(2):  # indices; seeds of the transform
        assert len({tuple(key[part] for key in keys) for keys in drawn.values()}) == 3


@pytest.mark.parametrize("first", [0, 1, 5, 6])
def test_a_position_gives_the_rest_of_the_epoch(first):
    batches = TrainingBatches(50, 16, 8, seed=0, repeats=2)
    batches.set_position(2, 0)
    whole = list(batches)
    batches.set_position(2, first)
    assert list(batches) == whole[first:]
    assert len(batches) == 6 - first


def test_repeated_augmentation_draws_a_third_of_the_samples_thrice_with_different_seeds():
    keys = flat(TrainingBatches(50, 16, 8, seed=0, repeats=3))
    assert len(keys) == 48
    assert list(Counter(index for index, _ in keys).values()) == [3] * 16
    assert len(set(keys)) == 48


def test_randomness_of_a_transform_comes_from_its_key_and_leaves_no_trace():
    samples = TrainingSamples(same, with_noise, 8)
    random.gauss(0, 1)  # stores a second number for the next call
    before = generator_states()
    first = samples[0, 7]["sample"]
    assert generator_states() == before
    torch.rand(5), np.random.rand(5), random.random()
    assert samples[3, 7]["sample"] == (3, *first[1:])
    assert all(a != b for a, b in zip(samples[0, 8]["sample"][1:], first[1:]))


def test_generators_go_on_after_a_transform_that_fails():
    before = generator_states()
    with pytest.raises(ZeroDivisionError):
        TrainingSamples(same, lambda sample: torch.rand(1) + 1 // 0, 8)[0, 7]
    assert generator_states() == before


@pytest.mark.parametrize("seed", range(5))
def test_an_unreadable_training_sample_is_replaced_by_always_the_same(seed):
    broken = {1, 2, 3, 4}
    found, again = (TrainingSamples(reader(broken), with_noise, 6)[1, seed] for _ in range(2))
    assert found == again
    assert found["sample"][0] == found["index"] in {0, 5}
    assert found["skipped"][0] == "sample 1 is broken"
    assert set(found["skipped"]) <= {f"sample {index} is broken" for index in broken}
    assert TrainingSamples(reader(broken), same, 6)[5, seed] == {"sample": 5, "index": 5, "skipped": []}


@pytest.mark.parametrize("samples, key", [(TrainingSamples, (1, 0)), (EvaluationSamples, 1)])
@pytest.mark.parametrize("num_samples", [3, 1000])
def test_only_unreadable_samples_are_an_error_that_names_some(samples, key, num_samples):
    with pytest.raises(RuntimeError, match=r"cannot be read.*sample 1 is broken"):
        samples(reader(range(num_samples)), same, num_samples)[key]


def evaluate(samples, batch_size, num_processes):
    """All batches of each process."""
    options = [LoaderOptions(process_index=i, num_processes=num_processes) for i in range(num_processes)]
    return [list(evaluation_loader(samples, list, batch_size, option)) for option in options]


@pytest.mark.parametrize(
    "num_samples, batch_size, num_processes",
    [(10, 4, 1), (12, 3, 2), (10, 4, 3), (7, 2, 4), (3, 8, 2), (2, 1, 4), (1, 2, 3)],
)
def test_evaluation_counts_every_sample_once(num_samples, batch_size, num_processes):
    samples = EvaluationSamples(reader(), lambda index: 10 * index, num_samples)
    processes = evaluate(samples, batch_size, num_processes)
    sizes = [[len(loaded["batch"]) for loaded in batches] for batches in processes]
    assert all(size == sizes[0] for size in sizes) and max(sizes[0]) <= batch_size
    pairs = [(i, s) for loaded in flat(processes) for i, s in zip(loaded["indices"].tolist(), loaded["batch"])]
    assert sorted(pair for pair in pairs if pair[0] >= 0) == [(index, 10 * index) for index in range(num_samples)]
    assert {index for index, _ in pairs} <= {-1, *range(num_samples)}


@pytest.mark.parametrize("broken", [0, 2, 6])
def test_an_unreadable_evaluation_sample_is_told_once_and_not_counted(broken):
    loaded = flat(evaluate(EvaluationSamples(reader({broken}), same, 7), batch_size=2, num_processes=4))
    assert [message for batch in loaded for message in batch["skipped"]] == [f"sample {broken} is broken"]
    indices = [index for batch in loaded for index in batch["indices"].tolist()]
    assert sorted(index for index in indices if index >= 0) == sorted(set(range(7)) - {broken})


def test_training_crops_may_be_smaller_than_the_evaluated_images(image_folders):
    path = str(min((image_folders / "train").rglob("*.png")))
    image = decode_image({"bytes": None, "path": path}, "image").convert("RGB")
    processor = resized_processor(ClusTRImageProcessor(), 32)
    for given, side in ((None, 32), (24, 24)):
        transform = training_transform(processor, 0.5, None, 0.0, given)
        assert transform((image, 3))["pixel_values"].shape == (3, side, side)
    assert evaluation_transform(processor)((image, 3))["pixel_values"].shape == (3, 32, 32)


def test_data_loading_workers_change_neither_images_nor_augmentation(image_folders):
    paths = sorted(map(str, (image_folders / "train").rglob("*.png")))
    transform = training_transform(resized_processor(ClusTRImageProcessor(), 16), 0.3, "rand-m9-mstd0.5-inc1", 0.5)

    def read(index):
        return decode_image({"bytes": None, "path": paths[index]}, "image").convert("RGB"), index

    loaders = []
    for num_workers in (0, 2):
        data = TrainingData(samples=TrainingSamples(read, transform, len(paths)), repeats=2)
        loaders.append(training_loader(data, collate, 16, 8, 0, LoaderOptions(num_workers=num_workers)))
    seen = []
    for position, num_batches in [((0, 0), 6), ((1, 0), 6), ((1, 4), 2)]:
        for loader in loaders:
            loader.batches.set_position(*position)
        alone, helped = map(list, loaders)
        assert len(alone) == len(helped) == num_batches
        for one, other in zip(alone, helped):
            assert torch.equal(one["indices"], other["indices"])
            assert torch.equal(one["batch"]["labels"], one["indices"])
            assert torch.equal(one["batch"]["pixel_values"], other["batch"]["pixel_values"])
        seen.append(torch.stack([batch["batch"]["pixel_values"] for batch in alone]))
    assert torch.equal(seen[2], seen[1][4:]) and not torch.equal(seen[0], seen[1])


def rows(num_shards=4):
    return Dataset.from_dict({"row": list(range(24))}).to_iterable_dataset(num_shards=num_shards)


def streamed(num_batches, stream=None, position=(0, 0), num_workers=0, process_index=0, broken=(), **settings):
    """Samples (row, four random numbers) from the loader of one process; batches of 3 by default."""
    settings = {"batch_size": 3, "seed": 0, "repeats": 1, **settings}
    data = TrainingData(
        stream=stream or rows(),
        read=reader(broken),
        transform=with_noise,
        repeats=settings["repeats"],
        shuffle_buffer=8,
    )
    # The loader divides the batch by the number of processes; the stream is already split.
    options = LoaderOptions(num_workers=num_workers, process_index=process_index)
    loader = training_loader(data, list, settings["batch_size"], settings["batch_size"], settings["seed"], options)
    loader.batches.set_position(*position)
    return list(islice(loader, num_batches))


def row_numbers(loaded):
    return [row for batch in loaded for row, *_ in batch["batch"]]


@pytest.mark.parametrize("batch_size, num_workers", [(3, 0), (5, 0), (3, 2)])
def test_a_stream_is_read_to_its_end_before_it_begins_anew(batch_size, num_workers):
    loaded = streamed(48 // batch_size + 1, batch_size=batch_size, num_workers=num_workers)
    assert {len(batch["batch"]) for batch in loaded} == {batch_size}
    drawn = row_numbers(loaded)
    first, second = drawn[:24], drawn[24:48]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_order_of_a_stream_is_a_function_of_seed_and_epoch():
    orders = [row_numbers(streamed(8, seed=s, position=(epoch, 0))) for s, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert orders[3] == orders[0]
    assert len(set(map(tuple, orders))) == 3
    assert list(range(24)) not in orders


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first", [1, 6, 11])
def test_a_position_in_a_stream_gives_the_later_batches(first, num_workers):
    whole = streamed(14, position=(1, 0), num_workers=num_workers)
    rest = streamed(14, position=(1, first), num_workers=num_workers)
    assert rest[:first] == [None] * first
    for batch, expected in zip(rest[first:], whole[first:], strict=True):
        assert batch["batch"] == expected["batch"]


def test_batches_before_the_position_are_not_decoded():
    decoded = []

    def read(row):
        decoded.append(row["row"])
        return row["row"]

    batches = StreamedBatches(rows(), read, same, list, batch_size=3, seed=0)
    batches.set_position(0, 5)
    *_, last = islice(batches, 6)
    assert decoded == [sample["sample"] for sample in last]


@pytest.mark.parametrize("num_shards, num_workers", [(4, 0), (3, 0), (4, 2)])
def test_processes_share_a_stream_without_overlap(num_shards, num_workers):
    shares = [
        streamed(4, split_dataset_by_node(rows(num_shards), i, 2), num_workers=num_workers, process_index=i)
        for i in range(2)
    ]
    assert sorted(flat(map(row_numbers, shares))) == list(range(24))
    noise = [sample[1] for loaded in flat(shares) for sample in loaded["batch"]]
    assert len(set(noise)) == 24


def test_repeats_of_a_streamed_row_follow_each_other_with_different_randomness():
    loaded = streamed(12, batch_size=6, repeats=3)
    drawn = row_numbers(loaded)
    assert drawn[::3] == drawn[1::3] == drawn[2::3]
    assert sorted(drawn[::3]) == list(range(24))
    assert len({sample[1] for batch in loaded for sample in batch["batch"]}) == 72


def test_unreadable_rows_are_replaced_by_others_of_their_batch():
    whole, found, again = (streamed(8, broken=broken) for broken in [(), (5, 17), (5, 17)])
    assert [batch["batch"] for batch in found] == [batch["batch"] for batch in again]
    replaced = set()
    for expected, batch in zip(map(row_numbers, ([b] for b in whole)), found):
        drawn = row_numbers([batch])
        bad = {5, 17} & set(expected)
        assert [row for row in expected if row not in bad] == [a for a, b in zip(drawn, expected) if b not in bad]
        assert set(drawn) == set(expected) - bad
        assert set(batch["skipped"]) == {f"sample {row} is broken" for row in bad}
        replaced |= bad
    assert replaced == {5, 17}


def test_a_batch_of_unreadable_rows_is_an_error_that_names_some():
    with pytest.raises(RuntimeError, match=r"cannot be read.*sample \d+ is broken"):
        streamed(1, broken=range(24))


def test_an_empty_stream_is_an_error():
    with pytest.raises(RuntimeError, match="no samples"):
        streamed(1, rows().filter(lambda row: False))


PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def encoded(image_format):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format=image_format)
    return file.getvalue()


def test_images_are_decoded_from_bytes_paths_and_as_they_are(tmp_path):
    (tmp_path / "image.png").write_bytes(encoded("PNG"))
    as_bytes = decode_image({"bytes": encoded("PNG"), "path": "elsewhere.png"}, "sample 3")
    as_path = decode_image({"bytes": None, "path": str(tmp_path / "image.png")}, "sample 3")
    assert np.array_equal(as_bytes, PIXELS) and np.array_equal(as_path, PIXELS)
    assert decode_image(as_path, "sample 3") is as_path


@pytest.mark.parametrize(
    "image, path",
    [
        ({"bytes": encoded("JPEG")[:1000], "path": "truncated.jpg"}, r" \(truncated\.jpg\)"),
        ({"bytes": encoded("JPEG")[:1000], "path": None}, ""),
        ({"bytes": b"no image", "path": "garbage.png"}, r" \(garbage\.png\)"),
        ({"bytes": b"", "path": None}, ""),
        ({"bytes": None, "path": "no/such/file.png"}, r" \(no/such/file\.png\)"),
        ({"bytes": None, "path": None}, ""),
        (None, ""),
    ],
)
def test_a_broken_image_is_named(image, path):
    with pytest.raises(UnreadableSample, match=f"^sample 3{path}: .+"):
        decode_image(image, "sample 3")


MALFORMED_EXIF = b"Exif\0\0\x00\x08\x00\x02\x01\x12\x00\x03"


def with_malformed_exif(image_format):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format=image_format, exif=MALFORMED_EXIF, lossless=True)
    return file.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_malformed_metadata_neither_end_a_training_nor_skip_a_sample(image_format):
    processor, content = ClusTRImageProcessor(), with_malformed_exif(image_format)
    read = decode_rgb({"bytes": content, "path": None}, "sample 3", processor)
    assert np.array_equal(read, PIXELS)
    columns = ("image", "label")
    rows = [{"image": {"bytes": content, "path": None}, "label": 1}]
    image, label = ReadRow(processor, columns, 2, "training", rows)(0)
    assert np.array_equal(image, PIXELS) and label == 1


def test_the_trainer_script_reads_malformed_metadata():
    features = Features({"image": ImageColumn(decode=False), "label": ClassLabel(names=["a"])})
    rows = [{"bytes": with_malformed_exif("PNG"), "path": None}] * 2
    split = Dataset.from_dict({"image": rows, "label": [0, 0]}, features=features)
    data = DatasetDict(train=split, validation=split)
    processor = ClusTRImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    add_transforms(data, processor, ClassificationDataArguments(train_dir="x"))
    expected = processor(Image.fromarray(PIXELS), return_tensors="pt").pixel_values[0]
    assert data["train"][0]["pixel_values"].shape == (3, 32, 32)
    torch.testing.assert_close(data["validation"][1]["pixel_values"], expected)


@pytest.mark.parametrize("value", [np.nan, 70_000.0, -1.0])
def test_pixels_that_are_no_grey_are_an_unreadable_sample(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.float32)).save(file, format="TIFF")
    with pytest.raises(UnreadableSample, match=r"sample 3 \(grey\.tif\): `images` must have grey values in"):
        decode_rgb({"bytes": file.getvalue(), "path": "grey.tif"}, "sample 3", ClusTRImageProcessor())


def test_one_sample_has_one_message_however_often_it_is_read():
    messages = set()
    for _ in range(3):
        with pytest.raises(UnreadableSample) as error:
            decode_image({"bytes": b"no image", "path": None}, "training sample 5")
        messages.add(str(error.value))
    assert messages == {"training sample 5: cannot identify image file"}


def test_the_first_rows_of_a_stream_stand_in_for_a_batch_that_cannot_be_read():
    def read(row):
        if row["number"] == 7:
            raise UnreadableSample("row 7")
        return row["number"]

    stream = Dataset.from_dict({"number": list(range(30))}).to_iterable_dataset()
    batches = StreamedBatches(stream, read, lambda number: number, list, batch_size=1, seed=0)
    [samples] = [[batch[0] for batch in islice(batches, 30)]]
    assert sorted(sample["sample"] for sample in samples if not sample["skipped"]) == [n for n in range(30) if n != 7]
    [replaced] = [sample for sample in samples if sample["skipped"]]
    assert set(replaced["skipped"]) == {"row 7"} and replaced["sample"] != 7


def test_samples_to_look_at_lie_evenly_in_a_split_and_can_be_read():
    def read(index):
        if index in (4, 5):
            raise UnreadableSample(f"sample {index}")
        return index

    samples = EvaluationSamples(read, lambda sample: {}, 12)
    assert list(spread_evenly(samples, 3)) == [0, 6, 8]
    assert list(spread_evenly(samples, 0)) == []
    assert len(list(spread_evenly(samples, 100))) == 12
