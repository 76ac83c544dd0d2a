//! While the database is away: known keys go on, unknown ones are told that nobody can say, and nobody is let in or
//! thrown out by mistake.

use support::forged::{unknown_key, with_wrong_secret};
use support::installation::Installation;
use support::postgres::{Cluster, Options};
use support::server::{Client, Options as ServerOptions, Server, event, eventually};

use crate::auth::refusals::{id_of, key_made, post};

#[test]
fn with_the_database_stopped_only_known_keys_go_on() {
    let mut cluster = Cluster::start_own(Options::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let installation = Installation::postgres_at(&cluster.tcp_url(&database));
    let server = installation.start(&[]);
    let (org, cached) = server.organization("cached", "0");
    let (cold_org, cold) = server.organization("cold", "0");
    let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    let as_key = |key: &str| format!("X-API-Key: {key}\r\n");
    let mut accepted = 0;
    for client in &mut clients {
        assert_eq!(post(client, &as_key(&cached)).status, 202);
        accepted += 1;
    }
    cluster.stop();
    for round in 0..5 {
        for client in &mut clients {
            assert_eq!(post(client, &as_key(&cached)).status, 202, "round {round}");
            accepted += 1;
        }
        for key in [&cold, &with_wrong_secret(&cold), &unknown_key()] {
            let unsure = post(&mut clients[round], &as_key(key));
            assert_eq!((unsure.status, &*unsure.code()), (503, "store_unavailable"), "round {round}");
            assert!(unsure.headers["retry-after"].parse::<u32>().unwrap() >= 1);
        }
        // What is wrong to the eye still is.
        assert_eq!(post(&mut clients[round], &as_key("mr_x")).code(), "invalid_api_key");
        assert_eq!(post(&mut clients[round], "").code(), "missing_api_key");
    }
    let reading = clients[0].request("GET", "/api/events", Some(&cached), None);
    assert_eq!((reading.status, &*reading.code()), (503, "store_unavailable"));
    assert_eq!(server.get("/health", None).status, 200);

    cluster.start();
    eventually("the cold key is known", || {
        let answer = post(&mut clients[0], &as_key(&cold));
        assert!(matches!(answer.status, 202 | 503), "{answer:?}");
        answer.status == 202
    });
    assert_eq!(post(&mut clients[0], &as_key(&with_wrong_secret(&cold))).code(), "invalid_api_key");
    server.drained();
    assert_eq!(installation.rows(&org).len(), accepted, "everything acknowledged is stored");
    assert_eq!(installation.rows(&cold_org).len(), 1, "and nothing that was refused");
    // Changes are heard again.
    let doomed = key_made(&server.cli(&["key", "create", "cached", "--json"]));
    assert_eq!(post(&mut clients[0], &as_key(&doomed)).status, 202);
    server.cli(&["key", "revoke", id_of(&doomed)]);
    eventually("the key is refused", || post(&mut clients[0], &as_key(&doomed)).status == 401);
}

#[test]
fn a_server_starts_without_its_database_and_becomes_ready_later() {
    let mut cluster = Cluster::start_own(Options::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let installation = Installation::postgres_at(&cluster.tcp_url(&database));
    cluster.stop();
    let server = installation.start_unready(&[]);
    let ops = |path| Client::connect(server.ops).request("GET", path, None, None).status;
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!((server.get("/health", None).status, ops("/health")), (200, 200));
        assert_eq!((server.get("/ready", None).status, ops("/ready")), (503, 503));
        assert_eq!(server.metric("millrace_ready"), 0.0);
        let unsure = post(&mut client, &format!("X-API-Key: {}\r\n", unknown_key()));
        assert_eq!((unsure.status, &*unsure.code()), (503, "store_unavailable"));
        assert_eq!(post(&mut client, "X-API-Key: junk\r\n").code(), "invalid_api_key");
    }
    server.says("the database is not ready");
    cluster.start();
    eventually("the server is ready", || server.get("/ready", None).status == 200 && ops("/ready") == 200);
    let (org, key) = server.organization("test", "0");
    let body = event("t", None, "1");
    eventually("a key is known", || {
        let answer = client.request("POST", "/api/events", Some(&key), Some(body.as_bytes()));
        assert!(matches!(answer.status, 202 | 503), "{answer:?}");
        answer.status == 202
    });
    server.drained();
    assert_eq!(installation.rows(&org).len(), 1);
}

#[test]
fn a_known_key_goes_on_at_shards_that_have_not_seen_it() {
    let mut cluster = Cluster::start_own(Options::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let server = Server::start(ServerOptions::postgres(&cluster.tcp_url(&database)).with(&["--shards", "8"]));
    let (org, key) = server.organization("test", "0");
    let as_key = format!("X-API-Key: {key}\r\n");
    assert_eq!(post(&mut server.connect(), &as_key).status, 202);
    cluster.stop();
    // So that no memory of the last second can answer.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let mut clients: Vec<Client> = (0..200).map(|_| server.connect()).collect();
    let accepted = clients.iter_mut().filter_map(|client| (post(client, &as_key).status == 202).then_some(())).count();
    assert_eq!(accepted, clients.len());
    assert_eq!(post(&mut clients[0], &format!("X-API-Key: {}\r\n", with_wrong_secret(&key))).status, 503);
    // Revoked while no server could be told: refused everywhere once they can ask.
    cluster.start();
    eventually("what was accepted is stored", || server.metric("event_queue_size") == 0.0);
    server.cli(&["key", "revoke", id_of(&key)]);
    eventually("every shard refuses it", || clients.iter_mut().all(|client| post(client, &as_key).status == 401));
    server.drained();
    let stored = Installation::postgres_at(&cluster.tcp_url(&database)).rows(&org).len();
    assert!(stored > accepted, "{stored}");
}
