"""Batches, schedule and memory of a run, compared with other libraries and manual counts."""

import math
from contextlib import nullcontext

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, PolynomialLR

from clustr_hf.training import dry_run
from clustr_hf.training.arguments import LoopArguments
from clustr_hf.training.dry_run import estimate_memory, format_step_memory, plot_learning_rate, try_step
from clustr_hf.training.schedule import TrainingPlan


def make_plan(num_samples=1000, num_processes=1, **arguments):
    return TrainingPlan.make(LoopArguments("out", **arguments), num_samples, num_processes)


@pytest.mark.parametrize(
    "num_processes, most, per_device, accumulation",
    [(1, None, 64, 1), (1, 16, 16, 4), (2, None, 32, 1), (2, 16, 16, 2), (8, None, 8, 1), (8, 4, 4, 2), (8, 16, 8, 1)],
)
def test_a_batch_is_divided_among_processes_and_accumulated(num_processes, most, per_device, accumulation):
    plan = make_plan(1000, num_processes, train_batch_size=64, per_device_train_batch_size=most, num_train_epochs=2)
    assert (plan.per_device_batch_size, plan.accumulation) == (per_device, accumulation)
    assert (plan.steps_per_epoch, plan.num_steps) == (15, 30)


@pytest.mark.parametrize(
    "arguments, steps_per_epoch, num_steps, warmup_steps",
    [
        (dict(num_train_epochs=2, warmup_epochs=0.4), 15, 30, 6),
        (dict(num_train_epochs=0.01), 15, 1, 0),
        (dict(num_train_epochs=2, max_train_steps=7, warmup_epochs=0.4, warmup_steps=3), 15, 7, 3),
        (dict(warmup_epochs=0.4, warmup_steps=0), 15, 150, 0),
        (dict(num_samples=None, max_train_steps=40, warmup_epochs=0.1), 40, 40, 4),
    ],
)
def test_steps_follow_from_epochs_unless_they_are_given(arguments, steps_per_epoch, num_steps, warmup_steps):
    plan = make_plan(**arguments)
    assert (plan.steps_per_epoch, plan.num_steps, plan.warmup_steps) == (steps_per_epoch, num_steps, warmup_steps)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_processes=3), r"--train_batch_size .*64 for 3 processes"),
        (dict(per_device_train_batch_size=24), r"--per_device_train_batch_size .*64, got 24"),
        (dict(num_processes=2, per_device_train_batch_size=20), r"--per_device_train_batch_size .*32, got 20"),
        (dict(num_samples=63), r"--train_batch_size is 64, but there are 63 samples"),
        (dict(num_samples=None), r"--max_train_steps is needed"),
    ],
)
def test_batches_that_do_not_work_out_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**arguments)


def optimizer(learning_rate):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate)


def torch_rates(scheduler, num_steps):
    """The learning rates of a torch scheduler before each step."""
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def plan_rates(plan):
    return [plan.learning_rate(step) for step in range(plan.num_steps)]


@pytest.mark.parametrize("warmup_steps, warmup_rate, lowest", [(0, 0.0, 0.0), (7, 1e-6, 1e-5), (20, 0.0, 1e-3)])
def test_cosine_agrees_with_timm(warmup_steps, warmup_rate, lowest):
    plan = make_plan(
        learning_rate=2e-3,
        max_train_steps=50,
        warmup_steps=warmup_steps,
        warmup_learning_rate=warmup_rate,
        min_learning_rate=lowest,
    )
    oracle = CosineLRScheduler(
        optimizer(2e-3),
        t_initial=50,
        lr_min=lowest,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_rate,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    expected = []
    for step in range(50):
        oracle.step_update(step)
        expected.append(oracle.optimizer.param_groups[0]["lr"])
    assert plan_rates(plan) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("power, lowest", [(1.0, 0.0), (0.9, 0.0), (2.0, 1e-4)])
def test_polynomial_agrees_with_torch(power, lowest):
    plan = make_plan(
        lr_scheduler_type="polynomial",
        learning_rate=2e-3,
        max_train_steps=50,
        polynomial_power=power,
        min_learning_rate=lowest,
    )
    decay = torch_rates(PolynomialLR(optimizer(2e-3 - lowest), total_iters=50, power=power), 50)
    assert plan_rates(plan) == pytest.approx([lowest + rate for rate in decay], rel=1e-9)


def test_multistep_agrees_with_torch():
    plan = make_plan(
        100, train_batch_size=10, num_train_epochs=5, lr_scheduler_type="multistep", lr_milestones=[2, 3.5]
    )
    assert plan_rates(plan) == pytest.approx(torch_rates(MultiStepLR(optimizer(1e-3), [20, 35], gamma=0.1), 50))


@pytest.mark.parametrize("schedule", [dict(), dict(lr_scheduler_type="multistep", lr_milestones=[1000])])
def test_warm_up_agrees_with_torch(schedule):
    settings = {"lr_scheduler_type": "constant", **schedule}
    plan = make_plan(max_train_steps=30, warmup_steps=10, warmup_learning_rate=1e-4, **settings)
    expected = torch_rates(LinearLR(optimizer(1e-3), start_factor=0.1, total_iters=10), 30)
    assert plan_rates(plan) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size, meant_for, peak", [(1024, 512, 1e-3), (256, 512, 2.5e-4), (1024, None, 5e-4)])
def test_the_peak_is_scaled_with_the_batch(batch_size, meant_for, peak):
    plan = make_plan(
        4096, train_batch_size=batch_size, learning_rate=5e-4, learning_rate_batch_size=meant_for, max_train_steps=9
    )
    assert plan.peak_learning_rate == pytest.approx(peak)
    assert max(plan_rates(plan)) == pytest.approx(peak)


@pytest.mark.parametrize("points, num_points", [(1000, 30), (10, 11)])
def test_the_plot_shows_the_learning_rate_from_first_to_last_step(points, num_points):
    plan = make_plan(max_train_steps=30, warmup_steps=5)
    [line] = plot_learning_rate(plan, points).axes[0].lines
    steps, rates = line.get_data()
    assert len(steps) == num_points and steps[0] == 0 and steps[-1] == 29
    assert list(rates) == [plan.learning_rate(int(step)) for step in steps]


@pytest.mark.parametrize("images_in_batch", [2, 5])
@pytest.mark.parametrize(
    "frozen, trained, saved_per_image",
    [
        (False, (8 * 16 + 16) + (16 * 4 + 4), 8 + 16),  # the input, and the ReLU's output, which the last layer shares
        (True, 16 * 4 + 4, 16),  # the last layer's input alone
    ],
)
def test_memory_of_a_small_model_is_as_counted_by_hand(frozen, trained, saved_per_image, images_in_batch):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model[0].requires_grad_(not frozen)
    batch = {"pixel_values": torch.rand(images_in_batch, 8)}
    memory = estimate_memory(model, lambda model, batch: model(batch["pixel_values"]).sum(), batch, num_images=32)
    in_bytes = {name: gigabytes * 1e9 for name, gigabytes in memory.items()}
    assert in_bytes == pytest.approx(
        {
            "weights": 4 * 212,
            "gradients": 4 * trained,
            "AdamW": 4 * 2 * trained,
            "activations": 4 * saved_per_image * 32,
        }
    )


def test_a_tried_step_is_taken_whole_and_twice(monkeypatch):
    """The CPU stands in for an accelerator with 8 GB whose memory torch counts."""

    def peak_memory(action, device):
        action()
        return {"peak_bytes": 3 * 10**9, "increase_bytes": 0}

    monkeypatch.setattr(dry_run, "peak_memory", peak_memory)
    monkeypatch.setattr(dry_run, "total_memory", lambda device: 8 * 10**9)
    monkeypatch.setattr(dry_run, "device_name", lambda device: "accelerator")
    model = nn.Linear(8, 4).eval()
    steps = torch.optim.AdamW(model.parameters())
    losses = []

    def compute_loss(model, batch):
        assert model.training
        losses.append(model(batch["pixel_values"]).square().mean())
        return losses[-1]

    tried = try_step(model, steps, compute_loss, {"pixel_values": torch.rand(2, 8)}, nullcontext)
    assert tried == {"device": "accelerator", "peak_gb": 3.0, "device_gb": 8.0}
    assert len(losses) == 2 and losses[1] < losses[0]
    assert steps.state[model.weight]["step"] == 2


def test_a_tried_step_without_memory_says_so(monkeypatch):
    def compute_loss(model, batch):
        raise torch.OutOfMemoryError("full")

    model = nn.Linear(8, 4)
    steps = torch.optim.AdamW(model.parameters())
    tried = try_step(model, steps, compute_loss, {"pixel_values": torch.rand(2, 8)}, nullcontext)
    assert tried["peak_gb"] == math.inf


@pytest.mark.parametrize(
    "peak_gb, device_gb, text",
    [
        (3.0, 8.0, "3.00 GB at its peak on X, which has 8.00 GB"),
        (3.0, None, "3.00 GB at its peak on X"),
        (None, None, "not counted by torch on X"),
        (math.inf, 8.0, "out of memory on X, which has 8.00 GB: use a smaller --per_device_train_batch_size"),
    ],
)
def test_what_a_dry_run_says_of_a_step(peak_gb, device_gb, text):
    assert format_step_memory("X", peak_gb, device_gb) == text
