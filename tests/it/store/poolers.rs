//! What is between the store and its database, and where in it the tables are: poolers, schemas.

use millrace_store::postgres::PostgresStore;
use millrace_store::{Store, StoreError};
use support::pooler::Pooler;
use support::postgres::{Cluster, with_option};

use crate::store::fixture::{StorePlain, admin, event, org, stored};

#[test]
fn a_pooler_in_transaction_mode_is_refused_with_the_reason() {
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    admin(&cluster.url("postgres")).batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    for settings in [
        "pool_mode = transaction",
        "pool_mode = transaction\nserver_round_robin = 1\nmin_pool_size = 4",
        "pool_mode = transaction\ndefault_pool_size = 1",
        "pool_mode = statement",
    ] {
        let pooler = Pooler::start(cluster, settings);
        let store = PostgresStore::new(&pooler.url(&database), 2).unwrap();
        let refused = store.migrate();
        let Err(StoreError::Misconfigured(why)) = refused else { panic!("{settings}: {refused:?}") };
        assert!(why.contains("pool_mode = session"), "{why}");
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(
        admin(&cluster.url(&database)).query_one(tables, &[]).unwrap().get::<_, i64>(0),
        0,
        "nothing is changed"
    );

    let pooler = Pooler::start(cluster, "pool_mode = session");
    let store = PostgresStore::new(&pooler.url(&database), 2).unwrap();
    store.migrate().unwrap();
    let (store, org): (&dyn Store, _) = (&store, org());
    assert_eq!(store.store_plain(&[event(org, "1")]).unwrap(), 1);
    assert_eq!(stored(store, org).len(), 1);
}

#[test]
fn the_tables_are_in_the_schema_that_the_url_names() {
    let url = Cluster::shared().create_database();
    let mut admin = admin(&url);
    admin.batch_execute("CREATE SCHEMA one; CREATE SCHEMA \"Two\"").unwrap();
    let org = org();
    for schema in ["one", "Two"] {
        let store = PostgresStore::new(&with_option(&url, &format!("schema={schema}")), 2).unwrap();
        assert!(store.migrate().unwrap() > 0, "each schema has tables of its own");
        store.maintain().unwrap();
        let store: &dyn Store = &store;
        assert_eq!(store.store_plain(&[event(org, "1")]).unwrap(), 1);
        assert_eq!(stored(store, org).len(), 1);
        let count = format!("SELECT count(*) FROM \"{schema}\".events");
        assert_eq!(admin.query_one(&count, &[]).unwrap().get::<_, i64>(0), 1);
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(admin.query_one(tables, &[]).unwrap().get::<_, i64>(0), 0);
}
