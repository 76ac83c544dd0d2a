-- How long an endpoint has failed, in time that servers lived through: since when is a moment, and a clock that is stepped
-- makes days of it. `failing_ms` is added up by whoever sees another failure; `failing_noted_at` bounds what several
-- servers add to the time that passed.
ALTER TABLE endpoints ADD COLUMN failing_ms bigint NOT NULL DEFAULT 0, ADD COLUMN failing_noted_at timestamptz;
