from .bundle import Bundle
from .models import ItemSide, Ranker, RankerHead, Tower
from .rules import Rules
from .s3 import pull, push

__all__ = ["Bundle", "ItemSide", "Ranker", "RankerHead", "Rules", "Tower", "pull", "push"]
