"""The model of torch's allocator on GPUs: sizes of segments, what is split, what merges, and what is given back."""

from __future__ import annotations

from halka.estimating.cuda_allocator import CUDAAllocatorModel

MB = 2**20


def test_small_pieces_share_a_segment_of_two_megabytes():
    allocator = CUDAAllocatorModel()
    places = [allocator.take(100) for _ in range(4096)]  # 512 bytes each
    assert allocator.held == 2 * MB
    allocator.take(1)
    assert allocator.held == 4 * MB
    for place in places:
        allocator.free(place)
    assert allocator.held == 2 * MB


def test_pieces_below_ten_megabytes_share_twenty_and_larger_ones_are_rounded():
    allocator = CUDAAllocatorModel()
    for _ in range(2):
        allocator.take(9 * MB)
    assert allocator.held == 20 * MB
    allocator.take(11 * MB)
    assert allocator.held == 20 * MB + 12 * MB


def test_a_hole_serves_what_it_has_room_for_and_holes_merge():
    allocator = CUDAAllocatorModel()
    first, second, third = (allocator.take(6 * MB) for _ in range(3))
    allocator.free(first)
    allocator.take(7 * MB)  # the hole is too small
    assert allocator.held == 40 * MB
    allocator.free(second)  # of 12 MB now
    assert allocator.take(11 * MB) == first
    assert allocator.held == 40 * MB
    assert third == second + 6 * MB


def test_what_is_left_of_a_segment_is_not_split_off_where_it_is_small():
    allocator = CUDAAllocatorModel()
    allocator.take(11 * MB + 1)  # a segment of 12 MB, of which less than 1 MB is left
    allocator.take(MB + 512)
    assert allocator.held == 12 * MB + 20 * MB
