from byoai_shared.protocol.budget import TokenBucket


def test_a_burst_passes_and_then_only_the_refill() -> None:
    bucket = TokenBucket(10, 2.0, now=100.0)
    assert all(bucket.spend(1, 100.0) for _ in range(10))
    assert not bucket.spend(1, 100.0)
    assert bucket.spend(1, 100.5)
    assert not bucket.spend(1, 100.5)


def test_it_never_holds_more_than_its_capacity() -> None:
    bucket = TokenBucket(3, 1.0, now=0.0)
    assert not bucket.spend(4, 1_000_000.0)
    assert bucket.spend(3, 1_000_000.0)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(1, 1.0, now=10.0)
    assert bucket.spend(1, 10.0)
    assert not bucket.spend(1, 5.0)
