//! Follows streams from segment to segment, to notice segments and records that are missing between two files.

use std::io;

use super::kept_aside_id;
use crate::disk::Storage;
use crate::segment::SegmentId;

/// Follows streams from segment to segment: which segment and which sequence number come next.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The segment that was read last.
    pub(super) behind: Option<Link>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub id: SegmentId,
    pub next_sequence: Option<u64>,
}

/// What the chain expects of a segment.
pub(super) struct Expected {
    /// Sequence number of its first record, if known.
    pub sequence: Option<u64>,
    /// Whether segments are missing between the one read before and this one.
    pub is_behind_missing: bool,
}

impl Chain {
    pub(super) fn expected(&self, storage: &dyn Storage, id: SegmentId) -> io::Result<Expected> {
        let Some(link) = self.behind.filter(|link| link.id.stream == id.stream) else {
            // The first segment of a stream begins with sequence number 0.
            let sequence = (id.number == 0).then_some(0);
            return Ok(Expected { sequence, is_behind_missing: false });
        };
        let between = id.number.saturating_sub(link.id.number).saturating_sub(1);
        if between == 0 {
            return Ok(Expected { sequence: link.next_sequence, is_behind_missing: false });
        }
        let is_between =
            |at: &SegmentId| at.stream == id.stream && (link.id.number + 1..id.number).contains(&at.number);
        let kept_aside = storage.list()?.iter().filter_map(|name| kept_aside_id(name)).filter(is_between).count();
        // A segment that was kept aside was reported then, with its lost records.
        let sequence = link.next_sequence.filter(|_| kept_aside == 0);
        Ok(Expected { sequence, is_behind_missing: kept_aside < between as usize })
    }

    /// Segment `id` exists and was not read to its end.
    pub(super) fn passed_unread(&mut self, id: SegmentId) {
        self.behind = Some(Link { id, next_sequence: None });
    }

    /// A segment was deleted while the directory was read. It was released, and so was everything before it.
    pub(super) fn released(&mut self) {
        self.behind = None;
    }
}
