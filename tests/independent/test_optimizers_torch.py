"""Our optimizers, schedules and clipping against PyTorch's: the same weights after 50 steps, in float64."""

import numpy as np
import pytest

import xpnn
from xpnn.layers.layer import Run
from xpnn.parameters import Layout, collect

torch = pytest.importorskip("torch", reason="the independent tier compares with PyTorch: pip install torch==2.13.0")
schedulers = torch.optim.lr_scheduler
clipping = torch.nn.utils

RNG = np.random.default_rng(3)
X = RNG.normal(size=(16, 3))
Y = np.sin(X @ RNG.normal(size=(3, 2))) + 0.5
STEPS = 50
ALL = {"decay_biases": True}

# (ours, PyTorch's class, PyTorch's arguments)
OPTIMIZERS = [
    (xpnn.SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    (xpnn.SGD(0.1, weight_decay=0.02, **ALL), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.02}),
    (xpnn.SGD(0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (
        xpnn.SGD(0.1, momentum=0.9, dampening=0.4, weight_decay=0.01, **ALL),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.01},
    ),
    (xpnn.SGD(0.1, 0.9, nesterov=True), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (xpnn.RMSprop(), torch.optim.RMSprop, {}),
    (xpnn.RMSprop(0.005, alpha=0.9, epsilon=1e-6), torch.optim.RMSprop, {"lr": 0.005, "alpha": 0.9, "eps": 1e-6}),
    (
        xpnn.RMSprop(momentum=0.8, weight_decay=0.01, **ALL),
        torch.optim.RMSprop,
        {"momentum": 0.8, "weight_decay": 0.01},
    ),
    (xpnn.RMSprop(1e-3, centered=True), torch.optim.RMSprop, {"lr": 1e-3, "centered": True}),
    (
        xpnn.RMSprop(1e-3, centered=True, momentum=0.8),
        torch.optim.RMSprop,
        {"lr": 1e-3, "centered": True, "momentum": 0.8},
    ),
    (xpnn.Adagrad(), torch.optim.Adagrad, {}),
    (
        xpnn.Adagrad(0.1, learning_rate_decay=0.05, initial_accumulator=0.1, weight_decay=0.01, **ALL),
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.1, "weight_decay": 0.01},
    ),
    (xpnn.Adadelta(), torch.optim.Adadelta, {}),
    (
        xpnn.Adadelta(0.5, rho=0.95, epsilon=1e-5, weight_decay=0.01, **ALL),
        torch.optim.Adadelta,
        {"lr": 0.5, "rho": 0.95, "eps": 1e-5, "weight_decay": 0.01},
    ),
    (xpnn.Adam(), torch.optim.Adam, {}),
    (
        xpnn.Adam(0.01, 0.8, 0.95, 1e-6, weight_decay=0.01, **ALL),
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01},
    ),
    (xpnn.Adam(0.01, amsgrad=True), torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (xpnn.AMSGrad(0.01, beta2=0.9), torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.9), "amsgrad": True}),
    (xpnn.AdamW(**ALL), torch.optim.AdamW, {}),
    (xpnn.AdamW(0.01, weight_decay=0.1, **ALL), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (xpnn.AdamW(0.01, amsgrad=True, **ALL), torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    (xpnn.Nadam(), torch.optim.NAdam, {}),
    (
        xpnn.Nadam(0.01, 0.8, 0.95, momentum_decay=0.05, weight_decay=0.01, **ALL),
        torch.optim.NAdam,
        {"lr": 0.01, "betas": (0.8, 0.95), "momentum_decay": 0.05, "weight_decay": 0.01},
    ),
    (xpnn.Nadam(0.01, momentum_decay=0.0), torch.optim.NAdam, {"lr": 0.01, "momentum_decay": 0.0}),
    (xpnn.Adafactor(), torch.optim.Adafactor, {}),
    (
        xpnn.Adafactor(0.3, -0.5, 1e-6, 0.1, 2.0, weight_decay=0.02, **ALL),
        torch.optim.Adafactor,
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (1e-6, 0.1), "d": 2.0, "weight_decay": 0.02},
    ),
    # Denominators this large bound the rows' mean, and every root.
    (xpnn.Adafactor(0.1, epsilon1=0.5), torch.optim.Adafactor, {"lr": 0.1, "eps": (0.5, 1e-3)}),
]


@pytest.fixture(autouse=True)
def _in_float64():
    """PyTorch keeps NAdam's running product in its default dtype: nine digits would be lost in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Pair:
    """One network, in xpnn and in PyTorch, with the same weights."""

    def __init__(self, optimizer):
        self.root = xpnn.Sequential(xpnn.Dense(3, 5), xpnn.Tanh(), xpnn.Dense(5, 2))
        self.layout = Layout(collect(self.root, self.root.build((3,))[1]), "float64", False)
        self.theta, _ = self.layout.initialize(7, xpnn.get_backend("numpy"))
        self.module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(torch.tensor(self.layout.split(self.theta)[name].T.copy()))
        self.slots = optimizer.initial_slots(self.theta, self.layout)
        self.optimizer = optimizer

    def step(self, number):
        prediction, backward = self.root.forward(X, self.layout.tree(self.theta, {}), Run())
        _, vjp = xpnn.ops.mse(prediction, Y)
        _, gradients = backward(vjp(1.0)[0])
        gradient = self.layout.gradient_vector(gradients)
        self.theta, self.slots = self.optimizer.apply(self.theta, gradient, self.slots, number, self.layout)

    def train(self, torch_optimizer, before_step=lambda: None, after_step=lambda: None, steps=STEPS):
        x, y = torch.tensor(X), torch.tensor(Y)
        for number in range(steps):
            self.step(number)
            torch_optimizer.zero_grad()
            torch.nn.functional.mse_loss(self.module(x), y).backward()
            before_step()
            torch_optimizer.step()
            after_step()

    def assert_equal(self, vector=None, module=None, atol=1e-14):
        ours = self.layout.split(vector or self.theta)
        for name, parameter in (module or self.module).named_parameters():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy().T, rtol=1e-10, atol=atol, err_msg=name)


@pytest.mark.parametrize(("ours", "kind", "arguments"), OPTIMIZERS, ids=lambda value: repr(value).replace("\n", " "))
def test_same_weights_after_50_steps(ours, kind, arguments):
    pair = Pair(ours)
    before = pair.theta[0].copy()
    pair.train(kind(pair.module.parameters(), **arguments))
    pair.assert_equal()
    assert np.abs(pair.theta[0] - before).max() > 1e-3


def test_adamw_without_decay_of_the_biases():
    pair = Pair(xpnn.AdamW(0.01, weight_decay=0.1))
    weights = [p for p in pair.module.parameters() if p.ndim == 2]
    biases = [p for p in pair.module.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    pair.train(torch.optim.AdamW(groups, lr=0.01))
    pair.assert_equal()


@pytest.mark.parametrize(
    ("ours", "arguments"),
    [
        (xpnn.Muon(0.02), {"lr": 0.02, "weight_decay": 0.0}),
        (
            xpnn.Muon(0.01, 0.8, False, weight_decay=0.1, scale="match_rms_adamw"),
            {"lr": 0.01, "momentum": 0.8, "nesterov": False, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"},
        ),
        (
            xpnn.Muon(0.01, iterations=3, coefficients=(1.875, -1.25, 0.375), epsilon=0.5),
            {"lr": 0.01, "weight_decay": 0.0, "ns_steps": 3, "ns_coefficients": (1.875, -1.25, 0.375), "eps": 0.5},
        ),
    ],
    ids=lambda value: repr(value),
)
def test_muon(ours, arguments, monkeypatch):
    """PyTorch rounds to bfloat16 first; here it is made to stay in float64. Biases take the steps of its AdamW."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    pair = Pair(ours)
    weights = [p for p in pair.module.parameters() if p.ndim == 2]
    biases = [p for p in pair.module.parameters() if p.ndim == 1]
    rate = ours.learning_rate * ours.adam_factor
    adam = torch.optim.AdamW(biases, lr=rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    before = pair.theta[0].copy()

    def step_of_the_biases():
        adam.step()
        adam.zero_grad()

    pair.train(torch.optim.Muon(weights, **arguments), before_step=step_of_the_biases)
    pair.assert_equal(atol=1e-11)
    assert np.abs(pair.theta[0] - before).max() > 1e-2


@pytest.mark.parametrize(("rate", "history_size", "steps"), [(1.0, 10, 20), (0.5, 3, 40), (0.1, 1, 20)])
def test_lbfgs(rate, history_size, steps):
    pair = Pair(xpnn.LBFGS(rate, history_size))
    theirs = torch.optim.LBFGS(
        pair.module.parameters(),
        lr=rate,
        max_iter=1,
        history_size=history_size,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn=None,
    )
    before = pair.theta[0].copy()
    x, y = torch.tensor(X), torch.tensor(Y)

    def closure():
        theirs.zero_grad()
        loss = torch.nn.functional.mse_loss(pair.module(x), y)
        loss.backward()
        return loss

    for number in range(steps):
        pair.step(number)
        theirs.step(closure)
        pair.assert_equal(atol=1e-11)
    assert np.abs(pair.theta[0] - before).max() > 1e-1


@pytest.mark.parametrize("limit", [0.02, 0.3])
def test_clip_value(limit):
    pair = Pair(xpnn.SGD(0.1, momentum=0.9, clip_value=limit))
    parameters = list(pair.module.parameters())
    pair.train(
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        before_step=lambda: clipping.clip_grad_value_(parameters, limit),
    )
    pair.assert_equal()


@pytest.mark.parametrize("limit", [0.02, 0.3])
def test_clip_global_norm(limit):
    pair = Pair(xpnn.SGD(0.1, momentum=0.9, clip_global_norm=limit, weight_decay=0.01, decay_biases=True))
    parameters = list(pair.module.parameters())
    pair.train(
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        before_step=lambda: clipping.clip_grad_norm_(parameters, limit),
    )
    pair.assert_equal()


@pytest.mark.parametrize("limit", [0.02, 0.3])
def test_clip_norm_of_each_parameter(limit):
    pair = Pair(xpnn.Adam(0.01, clip_norm=limit))
    parameters = list(pair.module.parameters())
    pair.train(
        torch.optim.Adam(parameters, lr=0.01),
        before_step=lambda: [clipping.clip_grad_norm_([parameter], limit) for parameter in parameters],
    )
    pair.assert_equal()


def test_average_of_the_weights():
    pair = Pair(xpnn.SGD(0.1, ema=0.9))
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    averaged = torch.optim.swa_utils.AveragedModel(pair.module, multi_avg_fn=average)
    averaged.update_parameters(pair.module)
    pair.train(
        torch.optim.SGD(pair.module.parameters(), lr=0.1), after_step=lambda: averaged.update_parameters(pair.module)
    )
    pair.assert_equal()
    pair.assert_equal(pair.optimizer.averaged(pair.slots), averaged.module)


SCHEDULES = [
    (xpnn.schedules.Constant(0.1), lambda o: schedulers.ConstantLR(o, factor=1.0)),
    (xpnn.StepDecay(0.1, 7, 0.3), lambda o: schedulers.StepLR(o, 7, gamma=0.3)),
    (xpnn.MultiStep(0.1, [3, 11, 30], 0.5), lambda o: schedulers.MultiStepLR(o, [3, 11, 30], gamma=0.5)),
    (xpnn.Exponential(0.1, 0.97), lambda o: schedulers.ExponentialLR(o, gamma=0.97)),
    (xpnn.Polynomial(0.1, 40, 2.5), lambda o: schedulers.PolynomialLR(o, total_iters=40, power=2.5)),
    (xpnn.Polynomial(0.1, 40), lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=40)),
    (xpnn.Cosine(0.1, STEPS, 0.003), lambda o: schedulers.CosineAnnealingLR(o, STEPS, eta_min=0.003)),
    (xpnn.CosineRestarts(0.1, 7), lambda o: schedulers.CosineAnnealingWarmRestarts(o, 7)),
    (
        xpnn.CosineRestarts(0.1, 3, 2, 0.02),
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3, T_mult=2, eta_min=0.02),
    ),
    (xpnn.Warmup(5, 0.1, start=0.025), lambda o: schedulers.LinearLR(o, 0.25, total_iters=5)),
    (xpnn.OneCycle(0.1, STEPS), lambda o: schedulers.OneCycleLR(o, 0.1, STEPS, cycle_momentum=False)),
    (
        xpnn.OneCycle(0.1, STEPS, 0.15, 10.0, 50.0),
        lambda o: schedulers.OneCycleLR(
            o, 0.1, STEPS, pct_start=0.15, div_factor=10.0, final_div_factor=50.0, cycle_momentum=False
        ),
    ),
    (
        xpnn.OneCycle(0.1, STEPS, 0.0),
        lambda o: schedulers.OneCycleLR(o, 0.1, STEPS, pct_start=0.0, cycle_momentum=False),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), SCHEDULES, ids=lambda value: repr(value) if "(" in repr(value) else "")
def test_schedules(ours, theirs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = theirs(optimizer)
    for step in range(STEPS):
        assert ours(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-10, abs=1e-16)
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()


def test_adam_with_a_schedule():
    pair = Pair(xpnn.Adam(xpnn.Cosine(0.05, STEPS)))
    optimizer = torch.optim.Adam(pair.module.parameters(), lr=0.05)
    scheduler = schedulers.CosineAnnealingLR(optimizer, STEPS)
    pair.train(optimizer, after_step=scheduler.step)
    pair.assert_equal()
