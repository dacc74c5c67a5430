"""A cluster at rest leaves its metadata in peace."""
import time

import pytest

from conftest import run_cluster

LASTS_S = 20
# It takes some seconds until everybody has looked at everything once.
BEFORE_S = 15


def transactions(postgres, database):
    """Single statements count as one each, and a commit with all its statements as one."""
    return int(postgres.query(f"select xact_commit + xact_rollback from pg_stat_database where datname = '{database}'"))


def changes_told(postgres, database):
    """How many rows were ever put into the log of changes, which wakes every process."""
    return int(postgres.query("select n_tup_ins from pg_stat_user_tables where relname = 'changes'", database))


@pytest.fixture
def two_and_four(postgres):
    yield from run_cluster(postgres.new_database(), 4, brokers=2)


def test_a_cluster_at_rest_asks_metadata_next_to_nothing(two_and_four, postgres):
    """What is left is linear: so much for each process, however many there are."""
    database = two_and_four.url.rsplit("/", 1)[1]
    time.sleep(BEFORE_S)
    before, told_before = transactions(postgres, database), changes_told(postgres, database)
    time.sleep(LASTS_S)
    each = (transactions(postgres, database) - before) / LASTS_S / 6
    told = changes_told(postgres, database) - told_before
    print(f"{each:.2f} transactions per second and process, {told} changes told to everybody")
    assert each < 7, "a process asks more than it has to"
    assert told < LASTS_S / 2, "renewals wake everybody"
