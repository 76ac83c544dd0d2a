//! A database of a server's, and what Postgres does to it: stopped, crashed, its backends gone, locked, slow, without
//! permission, without room for its WAL, refusing a commit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use rustix::process::{Pid, Signal, kill_process};

use crate::draws::Draws;
use crate::postgres::{Cluster, wait_for};
use crate::sentences::{Away, Moment};
use crate::small_disk::SmallDisk;

/// Rows of this type are refused for their data, by a CHECK.
pub const POISON: &str = "poison";
/// Rows of this type are refused when their transaction commits.
pub const LATE_POISON: &str = "poison.late";
/// Whom the server connects as: the owner of the database and no superuser, so that permissions hold for it.
const ROLE: &str = "app";

/// What happens to a database while load runs. Postgres answers again when its function returns.
pub type DatabaseFault = (&'static str, fn(&mut Cluster, &mut Database, &mut Draws));

/// What can be lost lies between the last row of a COPY and its commit, microseconds: what can be done often is.
pub const DATABASE_FAULTS: &[DatabaseFault] = &[
    ("all backends are terminated", |cluster, database, draws| {
        database.terminate(cluster, 40, "WHERE state = 'active' OR random() < 0.1", draws);
    }),
    ("Postgres is restarted", |cluster, database, draws| {
        for _ in 0..=draws.below(3) {
            database.away(|_| cluster.stop());
            cluster.start();
            draws.pause(500);
        }
    }),
    ("Postgres is stopped fast", |cluster, database, draws| {
        database.away(|_| {
            cluster.stop();
            draws.pause(1500);
        });
        cluster.start();
    }),
    ("Postgres is stopped at once", |cluster, database, draws| {
        for _ in 0..=draws.below(3) {
            database.away(|_| cluster.crash());
            cluster.start();
            draws.pause(500);
        }
    }),
    ("Postgres is killed", |cluster, database, draws| {
        database.away(|_| {
            cluster.kill();
            draws.pause(800);
        });
        cluster.start();
    }),
    ("one backend is terminated", |cluster, database, draws| {
        database.terminate(cluster, 40, "ORDER BY state = 'active' DESC, random() LIMIT 1", draws);
    }),
    ("one backend is killed", |cluster, database, draws| {
        for _ in 0..=draws.below(3) {
            database.kill_backend(cluster);
            draws.pause(500);
        }
    }),
    ("the WAL's disk is full", |cluster, database, _| database.fill_wal(cluster)),
    ("events are locked", |cluster, database, draws| database.lock(cluster, "events", draws.millis(200, 1500))),
    ("deliveries are locked", |cluster, database, draws| database.lock(cluster, "deliveries", draws.millis(200, 1500))),
    ("every row is slow", |cluster, database, draws| {
        let milliseconds = [1, 4, 30][draws.below(3) as usize];
        database.slow_down(cluster, milliseconds, draws.millis(500, 2000));
    }),
    ("events may not be written", |cluster, database, draws| {
        let mut admin = database.admin(cluster);
        database.away(|_| {
            run(&mut admin, &format!("REVOKE INSERT ON events FROM {ROLE}"));
            sleep(draws.millis(300, 2000));
        });
        run(&mut admin, &format!("GRANT INSERT ON events TO {ROLE}"));
    }),
];

pub struct Database {
    pub name: String,
    /// How often something was done to it.
    pub blows: usize,
    /// When nothing could be written to `events`.
    pub away: Vec<Away>,
}

impl Database {
    /// A new one; the server makes its tables.
    pub fn create(cluster: &Cluster) -> Self {
        let name = cluster.new_name();
        let role = format!(
            "DO $$ BEGIN CREATE ROLE {ROLE} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        );
        let mut admin = cluster.admin("postgres");
        admin.batch_execute(&role).expect("a role is created");
        admin.batch_execute(&format!("CREATE DATABASE {name} OWNER {ROLE}")).expect("a database is created");
        Self { name, blows: 0, away: Vec::new() }
    }

    /// For the server, on this port.
    pub fn url(&self, port: u16) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{port}/{}", self.name)
    }

    /// A superuser's connection. Waits for Postgres where it recovers.
    pub fn admin(&self, cluster: &Cluster) -> postgres::Client {
        cluster.admin_patiently(&self.name)
    }

    /// The end of it. A crashed Postgres synchronises every file there is before it recovers.
    pub fn drop(&self, cluster: &Cluster) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        cluster.admin("postgres").batch_execute(&drop).expect("a superuser may");
    }

    /// From now on poison is refused; the tables are there.
    pub fn refuse_poison(&self, cluster: &Cluster) {
        let refusing = format!(
            "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (type <> '{POISON}');
            CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'not this one, at the commit'; END $$;
            DO $$ DECLARE day regclass; BEGIN
                FOR day IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass LOOP
                    EXECUTE format('CREATE CONSTRAINT TRIGGER no_late_poison AFTER INSERT ON %s DEFERRABLE
                        INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.type = {quoted}) EXECUTE FUNCTION refuse_late()', day);
                END LOOP;
            END $$",
            quoted = format_args!("''{LATE_POISON}''"),
        );
        run(&mut self.admin(cluster), &refusing);
    }

    /// Nothing can be written while `work` is done.
    fn away(&mut self, work: impl FnOnce(&mut Self)) {
        let from = Moment::now();
        work(self);
        self.blows += 1;
        self.away.push(Away { from, until: Moment::now() });
    }

    /// Ends those of the server's backends that `which` leaves, so many times.
    fn terminate(&mut self, cluster: &Cluster, times: usize, which: &str, draws: &mut Draws) {
        let terminate = format!(
            "SELECT pg_terminate_backend(pid) FROM (
                SELECT * FROM (
                    SELECT pid, state FROM pg_stat_activity
                    WHERE datname = '{}' AND usename = '{ROLE}' AND backend_type = 'client backend'
                ) AS all_of_them {which}
            ) AS chosen",
            self.name
        );
        let mut admin = self.admin(cluster);
        for _ in 0..times {
            admin.simple_query(&terminate).expect("a superuser may");
            draws.pause(60);
        }
        self.blows += times;
    }

    /// Kills one of the server's backends, one at work if there is one: Postgres then ends all of them and recovers.
    fn kill_backend(&mut self, cluster: &Cluster) {
        let one = format!(
            "SELECT pid FROM pg_stat_activity WHERE datname = '{}' AND usename = '{ROLE}'
            AND backend_type = 'client backend' ORDER BY state = 'active' DESC, random() LIMIT 1",
            self.name
        );
        let mut admin = self.admin(cluster);
        if let Some(row) = admin.query_opt(&one, &[]).expect("a superuser may") {
            let pid: i32 = row.get(0);
            // It may have ended meanwhile.
            let _ = kill_process(Pid::from_raw(pid).expect("a process"), Signal::KILL);
            wait_for("the others to be ended too", || admin.simple_query("SELECT 1").is_err());
        }
        self.blows += 1;
        drop(self.admin(cluster));
    }

    fn lock(&mut self, cluster: &Cluster, table: &str, how_long: Duration) {
        let mut admin = self.admin(cluster);
        run(&mut admin, &format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        if table == "events" {
            self.away(|_| sleep(how_long));
        } else {
            self.blows += 1;
            sleep(how_long);
        }
        run(&mut admin, "ROLLBACK");
    }

    /// Each row takes so long for a while.
    fn slow_down(&mut self, cluster: &Cluster, milliseconds: i32, how_long: Duration) {
        let slow = format!(
            "CREATE TABLE slowness AS SELECT {milliseconds} AS milliseconds;
            GRANT SELECT ON slowness TO {ROLE};
            CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(milliseconds / 1000.0) FROM slowness; RETURN NEW; END $$;
            CREATE TRIGGER be_slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION be_slow()"
        );
        let mut admin = self.admin(cluster);
        run(&mut admin, &slow);
        self.blows += 1;
        sleep(how_long);
        // What is under way ends soon, and lets the trigger go.
        run(&mut admin, "UPDATE slowness SET milliseconds = 0");
        run(&mut admin, "DROP TRIGGER be_slow ON events; DROP FUNCTION be_slow; DROP TABLE slowness");
    }

    /// Moves the WAL to a small disk, writes until there is no room and Postgres panics, makes room, starts it again and
    /// moves the WAL back.
    fn fill_wal(&mut self, cluster: &mut Cluster) {
        let disk = SmallDisk::mount("64m");
        self.away(|_| {
            cluster.stop();
            cluster.move_wal_to(disk.path());
        });
        cluster.start();
        let before = cluster.log().len();
        let panicked = |cluster: &Cluster| cluster.log()[before..].contains("PANIC:");
        wait_for("the WAL to have no room", || {
            if let Ok(mut admin) = cluster.try_admin("postgres") {
                let _ = admin
                    .simple_query("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 100000)), pg_switch_wal()");
            }
            panicked(cluster)
        });
        self.away(|_| {
            // It recovers by itself, or cannot and ends; both need room that is not there.
            let patience = Instant::now() + Duration::from_millis(1500);
            while !cluster.has_ended() && Instant::now() < patience {
                sleep(Duration::from_millis(20));
            }
            disk.resize("512m");
        });
        // It may still be about to end for want of room.
        wait_for("Postgres to recover", || {
            if cluster.has_ended() {
                cluster.spawn_again();
            }
            cluster.try_admin(&self.name).is_ok_and(|mut admin| admin.simple_query("SELECT 1").is_ok())
        });
        self.away(|_| {
            cluster.stop();
            cluster.move_wal_back();
        });
        cluster.start();
    }
}

/// Runs statements, all or none; again where they and the server's own waited for each other.
fn run(admin: &mut postgres::Client, statements: &str) {
    wait_for("statements to be run", || match admin.batch_execute(statements) {
        Ok(()) => true,
        Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {
            // Of an explicit transaction the failed rest.
            admin.batch_execute("ROLLBACK").expect("Postgres answers");
            false
        }
        Err(error) => panic!("{statements}: {error}"),
    });
}
