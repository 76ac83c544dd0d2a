-- Several events in quarantine may have one id and other content (a dedup_id that was used twice). The first is named by
-- that id, as before, and `event_id` is null; the others by an id of their own, with the event's here.
ALTER TABLE quarantined_events ADD COLUMN event_id uuid;

-- To be listed and retried in their order, however many a mistaken schema change has sent here.
CREATE INDEX quarantined_events_list ON quarantined_events (quarantined_at, id);
