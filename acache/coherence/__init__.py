"""What keeps entries valid beyond their own dates: tags, and the channel that tells of others' changes."""

from .channel import Channel, ChannelState, Member, Trust
from .messages import Messages
from .tags import EPOCH, TagCell, Tags

__all__ = ["EPOCH", "Channel", "ChannelState", "Member", "Messages", "TagCell", "Tags", "Trust"]
