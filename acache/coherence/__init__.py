"""What keeps entries valid beyond their own dates: tags, and the channel that tells of others' changes."""

from .channel import Channel, ChannelState, Member, Trust
from .messages import Messages
from .tags import TagCell, Tags

__all__ = ["Channel", "ChannelState", "Member", "Messages", "TagCell", "Tags", "Trust"]
