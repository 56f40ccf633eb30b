"""A loaded model that answers rows."""


def may_memoise(tower_is_frozen: bool, zero_stage: int) -> bool:
    """Whether a tower's output can be kept for pictures that come again (tower_memo.py); the memory plan asks as well.

    The output of a tower that trains changes with every step. Under ZeRO-3 all ranks must run the same modules, and a rank
    that knows its pictures would leave the tower out.
    """
    return tower_is_frozen and zero_stage < 3
