"""What keeps entries valid beyond their own dates: tags, and the channel that tells of others' changes."""

from .channel import Channel, ChannelState, Member, Trust
from .tags import TagCell, Tags

__all__ = ["Channel", "ChannelState", "Member", "TagCell", "Tags", "Trust"]
