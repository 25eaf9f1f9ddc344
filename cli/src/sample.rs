//! Sample data: the eight TPC-H tables, generated in process, and a small bank.
//! Everything goes through COPY on the PostgreSQL wire, as a user would load it.

use anyhow::Result;
use bytes::Bytes;
use futures::SinkExt;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use tokio_postgres::Client;
use tpchgen::csv::{
    CustomerCsv, LineItemCsv, NationCsv, OrderCsv, PartCsv, PartSuppCsv, RegionCsv, SupplierCsv,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

/// The tables as the TPC-H specification defines them.
pub const TPCH_TABLES: &str = "
CREATE TABLE region (r_regionkey int8 PRIMARY KEY, r_name varchar(25) NOT NULL, r_comment varchar(152));
CREATE TABLE nation (n_nationkey int8 PRIMARY KEY, n_name varchar(25) NOT NULL, n_regionkey int8 NOT NULL,
    n_comment varchar(152));
CREATE TABLE part (p_partkey int8 PRIMARY KEY, p_name varchar(55) NOT NULL, p_mfgr varchar(25) NOT NULL,
    p_brand varchar(10) NOT NULL, p_type varchar(25) NOT NULL, p_size int4 NOT NULL,
    p_container varchar(10) NOT NULL, p_retailprice numeric(15,2) NOT NULL, p_comment varchar(23) NOT NULL);
CREATE TABLE supplier (s_suppkey int8 PRIMARY KEY, s_name varchar(25) NOT NULL, s_address varchar(40) NOT NULL,
    s_nationkey int8 NOT NULL, s_phone varchar(15) NOT NULL, s_acctbal numeric(15,2) NOT NULL,
    s_comment varchar(101) NOT NULL);
CREATE TABLE partsupp (ps_partkey int8 NOT NULL, ps_suppkey int8 NOT NULL, ps_availqty int4 NOT NULL,
    ps_supplycost numeric(15,2) NOT NULL, ps_comment varchar(199) NOT NULL, PRIMARY KEY (ps_partkey, ps_suppkey));
CREATE TABLE customer (c_custkey int8 PRIMARY KEY, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL,
    c_nationkey int8 NOT NULL, c_phone varchar(15) NOT NULL, c_acctbal numeric(15,2) NOT NULL,
    c_mktsegment varchar(10) NOT NULL, c_comment varchar(117) NOT NULL);
CREATE TABLE orders (o_orderkey int8 PRIMARY KEY, o_custkey int8 NOT NULL, o_orderstatus varchar(1) NOT NULL,
    o_totalprice numeric(15,2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority varchar(15) NOT NULL,
    o_clerk varchar(15) NOT NULL, o_shippriority int4 NOT NULL, o_comment varchar(79) NOT NULL);
CREATE TABLE lineitem (l_orderkey int8 NOT NULL, l_partkey int8 NOT NULL, l_suppkey int8 NOT NULL,
    l_linenumber int4 NOT NULL, l_quantity numeric(15,2) NOT NULL, l_extendedprice numeric(15,2) NOT NULL,
    l_discount numeric(15,2) NOT NULL, l_tax numeric(15,2) NOT NULL, l_returnflag varchar(1) NOT NULL,
    l_linestatus varchar(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL,
    l_receiptdate date NOT NULL, l_shipinstruct varchar(25) NOT NULL, l_shipmode varchar(10) NOT NULL,
    l_comment varchar(44) NOT NULL, PRIMARY KEY (l_orderkey, l_linenumber));
";

const BANK: &str = "
CREATE TABLE bank (id int PRIMARY KEY, owner text NOT NULL, balance int8 NOT NULL);
INSERT INTO bank VALUES (1, 'Ada', 1000), (2, 'Edsger', 1000), (3, 'Grace', 1000), (4, 'Leslie', 1000);
";

/// Rows of one COPY at most: one COPY is one transaction.
const ROWS_PER_COPY: usize = 100_000;

/// Creates and fills the bank table.
///
/// # Errors
/// When a statement fails.
pub async fn load_bank(client: &Client) -> Result<()> {
    client.batch_execute(BANK).await?;
    Ok(())
}

/// Creates and fills the TPC-H tables at a scale factor, with a progress bar on
/// a terminal.
///
/// # Errors
/// When a statement fails.
pub async fn load_tpch(client: &Client, scale: f64) -> Result<()> {
    client.batch_execute(TPCH_TABLES).await?;
    // 8.66 million rows at scale factor 1.
    let bar = ProgressBar::new((8_661_245.0 * scale) as u64).with_style(
        ProgressStyle::with_template("{msg:<10} {wide_bar} {pos}/{len} rows  {elapsed}")?,
    );
    macro_rules! load {
        ($table:literal, $generator:ident, $csv:ident) => {
            bar.set_message($table);
            let rows = $generator::new(scale, 1, 1);
            copy(client, $table, rows.iter().map($csv::new), &bar).await?;
        };
    }
    load!("region", RegionGenerator, RegionCsv);
    load!("nation", NationGenerator, NationCsv);
    load!("part", PartGenerator, PartCsv);
    load!("supplier", SupplierGenerator, SupplierCsv);
    load!("partsupp", PartSuppGenerator, PartSuppCsv);
    load!("customer", CustomerGenerator, CustomerCsv);
    load!("orders", OrderGenerator, OrderCsv);
    load!("lineitem", LineItemGenerator, LineItemCsv);
    bar.finish_and_clear();
    Ok(())
}

async fn copy<R: Display>(
    client: &Client,
    table: &str,
    rows: impl Iterator<Item = R>,
    bar: &ProgressBar,
) -> Result<()> {
    use std::fmt::Write;
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        let sink = client
            .copy_in(&format!("COPY {table} FROM STDIN (FORMAT csv)"))
            .await?;
        let mut sink = std::pin::pin!(sink);
        let mut chunk = String::new();
        let mut sent = 0;
        for row in rows.by_ref().take(ROWS_PER_COPY) {
            writeln!(chunk, "{row}")?;
            sent += 1;
            if chunk.len() > 64 * 1024 {
                sink.send(Bytes::from(std::mem::take(&mut chunk))).await?;
                bar.inc(sent);
                sent = 0;
            }
        }
        sink.send(Bytes::from(chunk)).await?;
        sink.finish().await?;
        bar.inc(sent);
    }
    Ok(())
}
