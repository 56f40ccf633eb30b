"""Alarms that a reward brings: metrics that show what it is fooled by. stages/rl/alarms.py lets them sound.

    class Tasty:
        alarms = (MetricAlarm("sweet", "tasty/sugar", "{value:.0%} of the replies are sweet; {limit:.0%} is the limit.", most=0.5),)

They stand apart from drive_vlm.rewards, which knows every reward by name, so that a reward may import them.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class MetricAlarm:
    """An alarm of a reward, as its attribute `alarms` names it.

    Attributes:
        name: of the alarm; the log has alarm/NAME, 0 or 1.
        metric: its name in the log. A generation batch without it does not count.
        words: what it means and what helps; {value}, {start} and {limit} are filled in.
        most: the most that it may be.
        times: how many times its mean at the start it may be.
        rise: how far it may rise above its mean at the start.
        first: generation batches, of those that have the metric, whose mean is the start.
        after: how many in a row must be bad before the alarm sounds (None: --alarm_after).
    """

    name: str
    metric: str
    words: str
    most: float = math.inf
    times: float = math.inf
    rise: float = math.inf
    first: int = 10
    after: int | None = None

    def limit(self, start: float) -> float:
        """The most that the metric may be, where `start` is its mean at the start."""
        grown = self.times * start if math.isfinite(self.times) else math.inf
        return min(self.most, grown, start + self.rise)
