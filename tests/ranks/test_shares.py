import pytest
import torch

from awqkit.ranks.ranks import ALONE, in_turns, shared_out
from awqkit.row_share import Shares, in_order, share_of, split_rows
from tests.ranks.threads import in_threads


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("total", "batch_size"), [(1, 4), (2, 1), (9, 2), (33, 4), (128, 4)])
def test_every_row_is_in_one_process_and_in_the_batch_that_it_is_in_alone(
    total: int, batch_size: int, count: int
) -> None:
    rows = torch.arange(total)
    alone = share_of(total, batch_size, rank=0, count=1)
    shares = [share_of(total, batch_size, rank=rank, count=count) for rank in range(count)]
    assert sorted(row for share in shares for row in share.rows) == list(range(total))
    assert [len(part) for part in split_rows(rows)] == [len(p) for p in alone.split(rows)]
    for which in (0, 1):
        batches = [alone.split(rows)[which].split(batch_size)]
        batches += [s.split(rows[list(s.rows)])[which].split(batch_size) for s in shares]
        whole, *parts = [[tuple(b.tolist()) for b in some if len(b)] for some in batches]
        taken = [parts[n % count][n // count] for n in range(len(whole))]
        assert taken == whole and sum(map(len, parts)) == len(whole)
    assert shares[0].rows[0] == 0


def test_what_is_advanced_is_what_is_held_once() -> None:
    for total in (1, 9):
        share, held = share_of(total, 2, rank=0, count=1), torch.arange(total)
        assert torch.cat(share.parts(held)).tolist() == held.tolist()


def test_rows_come_back_in_order() -> None:
    shares = Shares.of(rows=9, held_out=5, batch_size=2, rank=1, count=3)
    rows = torch.randn(9, 4)
    held = [share.rows for share in shares.calibration]
    assert torch.equal(in_order([rows[list(each)] for each in held], held), rows)
    assert shares.held_out[shares.own] == (1, 4)


def test_work_is_done_once_and_known_to_all() -> None:
    done: list[tuple[int, int]] = []

    def results(ranks) -> list[int]:
        works = [lambda n=n: done.append((ranks.rank, n)) or n * n for n in range(5)]
        return shared_out(ranks, works)

    assert in_threads(2, results) == [[0, 1, 4, 9, 16]] * 2
    assert sorted(done) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]
    assert results(ALONE) == [0, 1, 4, 9, 16]
    assert in_turns(ALONE, [1, 2]) == [[1], [2]]
