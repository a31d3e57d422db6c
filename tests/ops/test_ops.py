"""The pure tensor core against slow references that are written without it: numpy, float64, loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensors import greedy_max_min, lattice, rand

from tokenprune import ops
from tokenprune.builtin.mergers import Nearest
from tokenprune.seen.prompt import Seen


def covariance(rows: np.ndarray) -> np.ndarray:
    """Eq. 1, one outer product after the other."""
    sigma = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows - rows.mean(0):
        sigma += np.outer(row, row) / (row @ row)
    return sigma / len(rows)


# -- spectra ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "w"), [(3, 7), (7, 3), (5, 5), (1, 4), (4, 1)])
def test_spectrum_is_that_of_the_primal_matrix(m: int, w: int) -> None:
    """The smaller Gram matrix gives the same non-zero eigenvalues, and the rest are zero."""
    rows = rand(2, m, w)
    found = ops.spectrum(rows)
    primal = np.linalg.eigvalsh((rows.double().mT @ rows.double() / m).numpy())
    assert found.shape == (2, min(m, w))
    np.testing.assert_allclose(found, primal[:, -min(m, w) :], atol=1e-5)
    np.testing.assert_allclose(primal[:, : -min(m, w)], 0, atol=1e-12)


@pytest.mark.parametrize("power", [-40, -30, -23, 0, 30])
def test_spectrum_of_tiny_and_huge_rows_is_the_same_scaled(power: int) -> None:
    """Round-off left by equal heads is such a matrix; some builds of LAPACK give NaN for it in float32."""
    rows = rand(1, 32, 16).expand(6, 32, 16).clone()
    rows[1:, :, 3:] = 0  # of low rank
    found = ops.spectrum(rows * 2.0**power)
    torch.testing.assert_close(found, ops.spectrum(rows) * 4.0**power, atol=0, rtol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_flat_spectra_have_entropy_log_size_at_every_order(size: int, alpha: float) -> None:
    flat = torch.full((size,), 1 / size)
    assert float(ops.spectral_entropy(flat, alpha)) == pytest.approx(math.log(size), abs=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 2.0, 3.0])
def test_zero_and_round_off_eigenvalues_do_not_count(alpha: float) -> None:
    """A rank-deficient float32 matrix has eigenvalues of about 1e-8, of either sign, in place of its zeros."""
    clean, noisy = torch.tensor([0.25, 0.75]), torch.tensor([-1e-8, 0.0, 1e-8, 0.25, 0.75])
    expected = float(ops.spectral_entropy(clean, alpha))
    assert float(ops.spectral_entropy(noisy, alpha)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_empty_spectra_have_entropy_zero(alpha: float) -> None:
    assert float(ops.spectral_entropy(torch.zeros(4), alpha)) == 0


def test_top_k_keeps_the_largest_eigenvalues() -> None:
    """Eq. 6: the partial sum of the largest, without rescaling."""
    s = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = -sum(x * math.log(x) for x in (0.3, 0.4))
    assert float(ops.spectral_entropy(s, top_k=2)) == pytest.approx(expected, rel=1e-5)
    assert float(ops.spectral_entropy(s, top_k=9)) == pytest.approx(float(ops.spectral_entropy(s)))


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("side", [-1, 1])
def test_order_alpha_tends_to_von_neumann(side: int, k: int) -> None:
    """However close alpha comes to 1: no cancellation."""
    states = rand(4, 6, 16)
    near, at = ops.token_entropy(states, alpha=1 + side * 10.0**-k), ops.token_entropy(states)
    assert float((near - at).abs().max()) < 10.0**-k + 1e-3


@pytest.mark.parametrize(("n", "width"), [(5, 12), (12, 5), (8, 8)])
def test_layer_entropy_is_that_of_the_explicit_covariance(n: int, width: int) -> None:
    """Eq. 1 and 4, whichever Gram matrix is smaller."""
    states = rand(n, width)
    s = np.linalg.eigvalsh(covariance(states.double().numpy())).clip(1e-300)
    assert float(ops.layer_entropy(states)) == pytest.approx(float(-(s * np.log(s)).sum()), abs=1e-5)


@pytest.mark.parametrize("states", [torch.zeros(4, 6), torch.ones(4, 6), rand(1, 6)])
def test_layer_entropy_of_equal_rows_is_zero(states: torch.Tensor) -> None:
    assert float(ops.layer_entropy(states)) == 0


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_rows_equal_the_full_causal_map(kv_heads: int) -> None:
    """Grouped queries against repeated keys, in float64, rows in any order."""
    queries, keys, scaling = rand(4, 7, 8), rand(kv_heads, 7, 8, seed=1), 8**-0.5
    repeated = keys.repeat_interleave(4 // kv_heads, dim=0)
    logits = (queries.double() @ repeated.double().mT) * scaling
    full = logits.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf).softmax(-1)
    rows = torch.tensor([6, 0, 3])
    found = ops.attention_rows(queries[:, rows], keys, rows, scaling)
    torch.testing.assert_close(found, full[:, rows].float())
    assert found[:, 2, 4:].eq(0).all()


def test_attention_rows_are_float32_probabilities_of_half_precision_states() -> None:
    rows = torch.tensor([2, 4])
    found = ops.attention_rows(rand(4, 2, 8).bfloat16(), rand(2, 5, 8).bfloat16(), rows, 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 2))


# -- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 9, 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["random", "ties", "duplicates", "zeros"])
def test_farthest_first_is_greedy_max_min(kind: str, seed: int, keep: int) -> None:
    features = rand(20, 8, seed=seed) if kind == "random" else lattice(20, seed)
    if kind == "duplicates":
        features[10:] = features[torch.tensor([3, 3, 3, 1, 4, 0, 0, 9, 5, 5])]
    if kind == "zeros":
        features[torch.tensor([0, 7, 8])] = 0
    assert ops.farthest_first(features, keep).tolist() == greedy_max_min(features.double().numpy(), keep)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_farthest_first_of_identical_tokens_takes_each_once_in_order(n: int) -> None:
    assert ops.farthest_first(torch.ones(n, 4), n).tolist() == list(range(n))


def test_farthest_first_can_keep_nothing() -> None:
    assert ops.farthest_first(rand(5, 4), 0).tolist() == []


@pytest.mark.parametrize("keep", [0, 1, 5, 12])
def test_rank_scores_make_top_k_reproduce_an_order(keep: int) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(keep))[:keep]
    scores = ops.rank_scores(order, 12)
    assert scores.argsort(descending=True, stable=True)[:keep].tolist() == order.tolist()
    rest = sorted(set(range(12)) - set(order.tolist()))
    assert scores.argsort(descending=True, stable=True)[keep:].tolist() == rest


# -- random numbers --------------------------------------------------------------------------------------------------

WORD = 1 << 64


def splitmix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 7, -3, 2**40, 2**63, 2**64 + 7, -(2**70)])
def test_hashed_uniform_is_splitmix_in_python_integers(seed: int) -> None:
    ids, columns = [5, 5, 99, 31999], [1, 2, 3000]
    key = (sum(splitmix((t * 0x9E3779B1 + splitmix(i + 1)) % WORD) for i, t in enumerate(ids)) + seed) % WORD
    bits = [splitmix((splitmix(key) + c * 0x61C8864680B583EB) % WORD) for c in columns]
    expected = [(b >> 11) % (1 << 24) / (1 << 24) for b in bits]
    assert ops.hashed_uniform(torch.tensor(columns), torch.tensor(ids), seed).tolist() == expected


def test_hashed_uniform_is_uniform_and_seeds_are_independent() -> None:
    columns, ids = torch.arange(4096), torch.arange(700) % 50
    draws = torch.stack([ops.hashed_uniform(columns, ids, seed) for seed in range(8)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.stack([draw.histc(16, 0, 1) for draw in draws])
    chi_square = (counts - 256).square().sum(1) / 256
    assert chi_square.max() < 45  # 15 degrees of freedom: p = 1e-4
    assert (torch.corrcoef(draws) - torch.eye(8)).abs().max() < 0.07  # neighbouring seeds
    assert torch.corrcoef(torch.stack([draws[0, 1:], draws[0, :-1]]))[0, 1].abs() < 0.07  # neighbouring columns


@pytest.mark.parametrize("ids", [[2, 1, 3], [1, 2, 4], [1, 2], [1, 2, 3, 0]])
def test_hashed_uniform_depends_on_every_token_and_its_place(ids: list[int]) -> None:
    columns = torch.arange(16)
    assert not torch.equal(
        ops.hashed_uniform(columns, torch.tensor(ids), 0), ops.hashed_uniform(columns, torch.tensor([1, 2, 3]), 0)
    )


# -- columns ---------------------------------------------------------------------------------------------------------


def test_compact_right_puts_kept_columns_at_the_right_end_in_order() -> None:
    keep = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    index, real = ops.compact_right(keep, 4)
    for row, wanted in enumerate(([0, 2, 3, 5], [3], [])):
        assert index[row][real[row]].tolist() == wanted
        assert real[row].tolist() == [False] * (4 - len(wanted)) + [True] * len(wanted)
        assert len(set(index[row].tolist())) == 4  # padding is made of dropped columns, never of kept ones


@pytest.mark.parametrize("width", [0, 1, 5])
def test_compact_right_of_full_rows_takes_the_last_columns(width: int) -> None:
    index, real = ops.compact_right(torch.ones(2, 5, dtype=torch.bool), width)
    assert index.tolist() == [list(range(5 - width, 5))] * 2
    assert real.all()


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("b", [1, 2])
def test_gather_columns_picks_per_row(b: int, lead: tuple[int, ...]) -> None:
    """A row axis of one is shared, as rotary tables are."""
    states, index = rand(*lead, b, 5, 4), torch.tensor([[4, 0, 0], [2, 3, 1]])
    found = ops.gather_columns(states, index)
    assert found.shape == (*lead, 2, 3, 4)
    for row in range(2):
        assert torch.equal(found[..., row, :, :], states[..., min(row, b - 1), :, :][..., index[row], :])


# -- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [[0], [1, 4, 6], list(range(9)), []])
def test_nearest_averages_each_kept_token_with_the_dropped_ones_most_like_it(
    kept: list[int], dtype: torch.dtype
) -> None:
    hidden = rand(9, 6).to(dtype)
    merged = Nearest().merge(hidden, torch.tensor(kept, dtype=torch.long), Seen.of(keep=len(kept), hidden=hidden))
    x = hidden.double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    groups: dict[int, list[np.ndarray]] = {token: [x[token]] for token in kept}
    for token in set(range(9)) - set(kept) if kept else ():
        groups[max(kept, key=lambda k: unit[token] @ unit[k])].append(x[token])
    assert (merged.dtype, merged.shape) == (dtype, hidden.shape)
    for token, members in groups.items():
        expected = torch.from_numpy(np.mean(members, axis=0)).to(dtype)
        torch.testing.assert_close(merged[token], expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_nearest_lets_every_kept_token_stand_for_itself() -> None:
    """Two kept tokens may be equal: neither is folded into the other."""
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    merged = Nearest().merge(hidden, torch.tensor([0, 1]), Seen.of(keep=2, hidden=hidden))
    assert merged[1].tolist() == [1, 0]
    assert sorted(merged[:2, 1].tolist()) == [0, 0.5]
