"""What keeps entries valid beyond their own dates: tags, and the channel that tells of others' changes."""

from .channel import Channel, ChannelState, Member, Trust
from .messages import Messages
from .tags import EPOCH, Heard, TagCell, Tags

__all__ = ["EPOCH", "Channel", "ChannelState", "Heard", "Member", "Messages", "TagCell", "Tags", "Trust"]
