"""Every way of running the experts gives what the token-by-token definition gives, forward and backward."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from moe_robot.moe import (
    ExpertBank,
    MoEFeedForward,
    RoutingPlan,
    choose_backend,
    combine,
    execute,
    execute_everywhere,
    execute_grouped,
    execute_loop,
    execute_single,
    execute_sorted,
    gather,
)
from moe_robot.moe.blocked import FAMILIAR_ROWS, Piece, cut, run_blocked

WIDTH, HIDDEN = 16, 8
BACKENDS = {
    "single": execute_single, "sorted": execute_sorted, "grouped": execute_grouped, "everywhere": execute_everywhere,
    "chosen": execute,
}  # fmt: skip
ACTIVATIONS = ("swiglu", "geglu", "relu")


def make_plan(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T, kept_TK=None) -> RoutingPlan:
    if kept_TK is not None:
        weights_TK = weights_TK.masked_fill(~kept_TK, 0.0)
    return RoutingPlan(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T, kept_TK)


def random_plan(n_tokens: int, k: int, n_experts: int, seed: int, kept: bool = False) -> RoutingPlan:
    """Random routes; with few tokens and many experts most experts get none."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(n_tokens, n_experts, generator=generator, dtype=torch.float64).requires_grad_()
    probabilities_TE = logits_TE.softmax(dim=-1)
    weights_TK, ids_TK = probabilities_TE.topk(k, dim=-1)
    kept_TK = torch.rand(n_tokens, k, generator=generator) < 0.6 if kept else None
    modality_T = torch.zeros(n_tokens, dtype=torch.int64)
    return make_plan(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T, kept_TK)


def double_bank(n_experts: int, storage="separate", activation="swiglu", seed: int = 0) -> ExpertBank:
    torch.manual_seed(seed)
    return ExpertBank(n_experts, WIDTH, HIDDEN, activation, storage).double()


def double_tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(y_TD: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """Of a fixed random projection of ``y_TD``; zeros where nothing flowed."""
    if not y_TD.requires_grad:  # no route ran
        return [torch.zeros_like(leaf) for leaf in leaves]
    weights = torch.randn(y_TD.shape, dtype=y_TD.dtype, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.grad((y_TD * weights).sum(), leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


@settings(max_examples=80, deadline=None)
@given(
    backend=st.sampled_from(sorted(BACKENDS)),
    storage=st.sampled_from(["separate", "stacked"]),
    activation=st.sampled_from(ACTIVATIONS),
    n_tokens=st.integers(0, 24),
    n_experts=st.integers(1, 7),
    k=st.integers(1, 7),
    kept=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_backend_equals_the_definition_with_all_gradients(
    backend, storage, activation, n_tokens, n_experts, k, kept, seed
):
    kept = kept and backend != "grouped"  # the path that is captured knows no capacity
    plan = random_plan(n_tokens, min(k, n_experts), n_experts, seed, kept)
    bank, x_TD = double_bank(n_experts, storage, activation, seed), double_tokens(n_tokens, seed)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    if backend == "grouped":  # torch has no grouped product in float64
        bank, x_TD, tolerance = bank.float(), x_TD.detach().float().requires_grad_(), {"rtol": 1e-4, "atol": 1e-5}
    leaves = [x_TD, plan.logits_TE, *bank.parameters()]
    expected_TD, y_TD = execute_loop(plan, x_TD, bank).to(x_TD.dtype), BACKENDS[backend](plan, x_TD, bank)
    assert_close(y_TD, expected_TD, **tolerance)
    if n_tokens:
        assert_close(gradients(y_TD, *leaves), gradients(expected_TD, *leaves), **tolerance)
    with torch.no_grad():
        assert_close(BACKENDS[backend](plan, x_TD, bank), expected_TD, **tolerance)


def test_experts_with_more_rows_than_a_block_give_the_same_as_with_few():
    plan, bank, x_TD = random_plan(1500, 2, 3, 0), double_bank(3), double_tokens(1500)
    modules = nn.ModuleList(bank)  # the same experts, called as modules
    leaves = [x_TD, plan.logits_TE, *bank.parameters()]
    y_TD, expected_TD = execute_sorted(plan, x_TD, bank), execute_sorted(plan, x_TD, modules)
    assert_close(y_TD, expected_TD)
    assert_close(gradients(y_TD, *leaves), gradients(expected_TD, *leaves))


def test_a_rerun_gives_the_same_bits():
    plan, bank, x_TD = random_plan(700, 2, 4, 0), double_bank(4), double_tokens(700)

    def run() -> list[torch.Tensor]:
        y_TD = execute(plan, x_TD, bank)
        return [y_TD, *gradients(y_TD, x_TD, plan.logits_TE, *bank.parameters())]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_a_route_that_does_not_run_adds_nothing_even_where_its_expert_would_give_nan():
    bank = double_bank(2)
    with torch.no_grad():
        bank[1].out.weight.fill_(float("nan"))
    ids_TK, weights_TK = torch.tensor([[0, 1], [1, 0], [1, 0]]), torch.full((3, 2), 0.5, dtype=torch.float64)
    kept_TK = torch.tensor([[True, False], [False, True], [False, False]])
    logits_TE, modality_T = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    plan = make_plan(ids_TK, weights_TK, logits_TE, logits_TE, modality_T, kept_TK)
    x_TD = double_tokens(3)
    y_TD = execute(plan, x_TD, bank)
    assert_close(y_TD[:2], 0.5 * bank[0](x_TD[:2]))
    assert not y_TD[2].any()
    assert plan.counts_E.tolist() == [2, 0]
    (gradient_TD,) = torch.autograd.grad(y_TD.sum(), [x_TD])
    assert bool(gradient_TD.isfinite().all())
    assert not gradient_TD[2].any()


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(0, 30), k=st.integers(1, 5), kept=st.booleans(), seed=st.integers(0, 99))
def test_gathered_rows_come_back_to_their_tokens(n_tokens, k, kept, seed):
    plan, x_TD = random_plan(n_tokens, k, 5, seed, kept), double_tokens(n_tokens, seed)
    expected_TD = x_TD * plan.weights_TK.sum(dim=1, keepdim=True)
    assert_close(combine(plan, gather(plan, x_TD)), expected_TD)
    experts_R = plan.ids_TK.reshape(-1)[plan.order_R]
    assert experts_R.tolist() == sorted(experts_R.tolist())
    assert plan.counts_E.tolist() == torch.bincount(experts_R, minlength=5).tolist()


@pytest.mark.parametrize("storage", ["separate", "stacked"])
def test_under_bf16_autocast_experts_compute_in_bf16_and_stay_near_float32(storage):
    torch.manual_seed(0)
    layer = MoEFeedForward(WIDTH, HIDDEN, {"any": 4}, ("any",))
    layer.experts.store_as(storage)
    x_TD, modality_T = torch.randn(40, WIDTH), torch.zeros(40, dtype=torch.int64)
    expected_TD, _ = layer(x_TD, modality_T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_TD, plan = layer(x_TD, modality_T)
        grouped_TD = execute_grouped(plan, x_TD, layer.experts)
    assert y_TD.dtype == grouped_TD.dtype == torch.bfloat16
    for result_TD in (y_TD, grouped_TD):
        assert_close(result_TD.float(), expected_TD, rtol=0.05, atol=0.01)
    y_TD.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.experts.parameters())


def test_many_rows_in_bf16_meet_few_shapes_and_come_out_as_in_one_product():
    met = {piece.rows for rows in range(1, 3000) for group in cut([Piece(0, rows)], FAMILIAR_ROWS) for piece in group}
    assert len(met) < 150  # oneDNN keeps code for about a thousand, and a bank has six products
    assert all(sum(p.rows for group in cut([Piece(0, n)], FAMILIAR_ROWS) for p in group) == n for n in range(1, 3000))
    bank = ExpertBank(2, WIDTH, HIDDEN).to(torch.bfloat16)
    rows_RD = torch.randn(1500, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    pieces = [Piece(0, 777), Piece(1, 723)]
    y_RD = run_blocked(bank.apart({0, 1}), bank.activation, rows_RD, pieces)
    expected_RD = torch.cat([bank[0](rows_RD[:777]), bank[1](rows_RD[777:])])
    assert_close(y_RD, expected_RD, rtol=0.05, atol=0.01)
    both = [torch.autograd.grad(y.float().square().sum(), [rows_RD, *bank.parameters()]) for y in (y_RD, expected_RD)]
    for ours, theirs in zip(*both, strict=True):
        assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_a_bank_moves_between_storages_with_its_values_and_keeps_one_state_dict():
    layers = [MoEFeedForward(WIDTH, HIDDEN, {"any": 3}, ("any",)) for _ in range(2)]
    layers[1].experts.store_as("stacked")
    assert list(layers[0].state_dict()) == list(layers[1].state_dict())
    assert "experts.2.gate_up.weight" in layers[1].state_dict()
    x_TD, modality_T = torch.randn(9, WIDTH), torch.zeros(9, dtype=torch.int64)
    for source, target in (layers, layers[::-1]):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict())
        expected_TD, _ = source(x_TD, modality_T)
        assert_close(target(x_TD, modality_T)[0], expected_TD, rtol=1e-4, atol=1e-4)
        with torch.no_grad():  # acting: the stacked form runs all experts in one call
            assert_close(target(x_TD, modality_T)[0], expected_TD, rtol=1e-4, atol=1e-4)
    before = {name: value.clone() for name, value in layers[1].state_dict().items()}
    layers[1].experts.store_as("separate")
    for name, value in layers[1].state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("storage", ["separate", "stacked"])
def test_a_checkpoint_of_another_roster_or_size_is_refused(storage):
    bank = ExpertBank(3, WIDTH, HIDDEN, storage=storage)
    with pytest.raises(RuntimeError, match=r"[Mm]issing.*2\.gate_up"):
        bank.load_state_dict(ExpertBank(2, WIDTH, HIDDEN).state_dict())
    with pytest.raises(RuntimeError, match=r"[Uu]nexpected.*3\.gate_up"):
        bank.load_state_dict(ExpertBank(4, WIDTH, HIDDEN).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        bank.load_state_dict(ExpertBank(3, WIDTH, HIDDEN + 1).state_dict())


def test_a_copied_moved_or_hooked_bank_computes_the_same():
    plan, bank, x_TD = random_plan(20, 2, 4, 0), double_bank(4), double_tokens(20)
    expected_TD = execute(plan, x_TD, bank)
    twin = copy.deepcopy(bank)
    assert_close(execute(plan, x_TD, twin), expected_TD)
    assert_close(execute(plan, x_TD, twin.float().double()), expected_TD, rtol=1e-5, atol=1e-5)
    seen = []
    bank[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    assert_close(execute(plan, x_TD, bank), expected_TD)
    assert seen == [plan.counts_E[0]]


def test_an_expert_that_someone_replaced_runs_in_place_of_the_old_one():
    plan, bank, x_TD = random_plan(20, 2, 4, 0), double_bank(4), double_tokens(20)
    bank[1] = nn.Linear(WIDTH, WIDTH).double()
    assert_close(execute(plan, x_TD, bank), execute_loop(plan, x_TD, bank))


class MeanOfSegment(nn.Module):
    """Gives every row the mean of its segment, so it shows what rows and segments it was called with."""

    takes_segments = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def forward(self, rows_RD: torch.Tensor, segment_R: torch.Tensor) -> torch.Tensor:
        self.calls.append(segment_R.tolist())
        return torch.stack([rows_RD[segment_R == s].mean(dim=0) for s in segment_R])


def test_experts_of_rows_and_experts_of_whole_segments_work_behind_one_gate():
    torch.manual_seed(0)
    whole = MeanOfSegment()
    experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH).double(), whole, nn.Sequential(nn.Tanh())])
    segment_T = torch.arange(20) // 5
    choice = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1]])
    ids_TK, weights_TK = choice[segment_T], torch.full((20, 2), 0.5)
    plan = make_plan(ids_TK, weights_TK, torch.zeros(20, 3), torch.zeros(20, 3), segment_T)
    x_TD = double_tokens(20)
    y_TD = execute(plan, x_TD, experts, segment_T)
    assert whole.calls == [[0] * 5 + [1] * 5 + [3] * 5]
    assert_close(y_TD, execute_loop(plan, x_TD, experts, segment_T))
    with pytest.raises(ValueError, match="MeanOfSegment takes whole segments"):
        execute(plan, x_TD, experts)


def test_a_segment_of_one_token_is_still_given_to_experts_of_segments_as_a_segment():
    plan = make_plan(torch.tensor([[0, 1]]), torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
    x_TD, experts = double_tokens(1), nn.ModuleList([MeanOfSegment(), nn.Identity()])
    assert_close(execute(plan, x_TD, experts, torch.tensor([7])), 2 * x_TD)


@pytest.mark.parametrize(
    ("device", "dtype", "n_rows", "exporting", "expected"),
    [
        ("cpu", torch.float32, 2, False, "single"),
        ("cpu", torch.float32, 5, False, "sorted"),
        ("cpu", torch.bfloat16, 5000, False, "sorted"),
        ("cuda", torch.bfloat16, 2, False, "grouped"),
        ("cuda", torch.float32, 5000, False, "sorted"),
        ("cpu", torch.float32, None, True, "grouped"),
        ("cuda", torch.float32, None, True, "grouped"),
    ],
)
def test_the_backend_follows_from_device_type_dtype_rows_and_export(device, dtype, n_rows, exporting, expected):
    assert choose_backend(device, dtype, n_rows, exporting) == expected


class TokensOnly(nn.Module):
    """The layer without its plan, as one would export it."""

    def __init__(self, layer: MoEFeedForward) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_TD: torch.Tensor, modality_T: torch.Tensor) -> torch.Tensor:
        return self.layer(x_TD, modality_T)[0]


@pytest.mark.parametrize("storage", ["separate", "stacked"])
def test_the_layer_exports_for_any_number_of_tokens_and_equals_eager(storage):
    torch.manual_seed(0)
    module = TokensOnly(MoEFeedForward(WIDTH, HIDDEN, {"vision": 3, "arm": 2}, ("vision", "arm"))).eval()
    module.layer.experts.store_as(storage)
    n_tokens = torch.export.Dim("T", min=2, max=4096)
    example = torch.randn(6, WIDTH), torch.arange(6) % 2
    exported = torch.export.export(module, example, dynamic_shapes=({0: n_tokens}, {0: n_tokens})).module()
    for n in (2, 6, 57):
        x_TD, modality_T = torch.randn(n, WIDTH), torch.arange(n) % 2
        assert_close(exported(x_TD, modality_T), module(x_TD, modality_T), rtol=1e-5, atol=1e-5)


def test_the_layer_is_captured_whole_for_compilation_with_its_gradients():
    torch.manual_seed(0)
    module = TokensOnly(MoEFeedForward(WIDTH, HIDDEN, {"vision": 3, "arm": 2}, ("vision", "arm")))
    module.layer.experts.store_as("stacked")
    captured = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (6, 57):
        x_TD, modality_T = torch.randn(n, WIDTH), torch.arange(n) % 2
        results = []
        for run in (module, captured):
            module.zero_grad()
            y_TD = run(x_TD, modality_T)
            y_TD.square().sum().backward()
            results.append([y_TD, *(p.grad.clone() for p in module.parameters())])
        assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_the_compiled_layer_equals_eager():
    torch.manual_seed(0)
    module = TokensOnly(MoEFeedForward(WIDTH, HIDDEN, {"vision": 3, "arm": 2}, ("vision", "arm")))
    module.layer.experts.store_as("stacked")
    x_TD, modality_T = torch.randn(57, WIDTH), torch.arange(57) % 2
    assert_close(torch.compile(module, fullgraph=True)(x_TD, modality_T), module(x_TD, modality_T))


def test_what_cannot_be_captured_is_named():
    layer = MoEFeedForward(WIDTH, HIDDEN, {"vision": 3, "arm": 2}, ("vision", "arm"))
    layer.experts = nn.ModuleList(layer.experts)
    with pytest.raises(Exception, match="only an ExpertBank"):
        torch.export.export(TokensOnly(layer), (torch.randn(6, WIDTH), torch.arange(6) % 2))
