from .file_times import FileTimes as FileTimes
from .heads import fewer_heads as fewer_heads
from .inserted import Inserted as Inserted
from .insertion import Insertion as Insertion, Place as Place, insert as insert, insertions as insertions
from .makers import (
    depthwise as depthwise,
    factorised as factorised,
    other as other,
    skip as skip,
    smaller_kernel as smaller_kernel,
)
from .narrowing import narrower as narrower
from .teacher import Teacher as Teacher
