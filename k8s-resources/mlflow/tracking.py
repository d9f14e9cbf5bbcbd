"""Starts MLflow in a pod, and says first what is wrong.

    python3 -m tracking migrate         checks what it is given, and brings the database to this MLflow's schema
    python3 -m tracking serve ARG...    checks the same, and becomes `mlflow server ARG...`

Everything comes from the environment: MLflow's own variables (MLFLOW_*), those of PostgreSQL's client library (PG*), and those
of the object stores' (AWS_*; Google's credentials come from the node). What is wrong is one line on standard error that names the
variable, and where in the cluster it comes from; no line has a password in it.

TRACKING_DATABASE_PATIENCE  seconds to wait for a database that does not answer (120)
TRACKING_CREATE_BUCKET      `true`: an S3 bucket that is not there is made
"""

import base64
import os
import sys
import time
from urllib.parse import urlsplit

DOCUMENT = "docs/mlflow.md"
# Of all that run `migrate` on one database, one does it: the key of PostgreSQL's advisory lock.
LOCK = 0x6D6C666C6F77


class Problem(Exception):
    """Something that only a person can mend; its text is the line that they read."""


def say(text):
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def main(arguments):
    match arguments:
        case ["migrate"]:
            action = migrate
        case ["serve", *_]:
            action = serve
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    try:
        check_settings(os.environ)
        database = connect()
        check_artifacts(os.environ)
        action(database, arguments[1:])
    except Problem as problem:
        say(f"ERROR: {problem}")
        return 1
    return 0


# What has to be set, and where it comes from in our manifests.
REQUIRED = {
    "PGHOST": "the ConfigMap mlflow (the component postgres or gcp sets it)",
    "PGDATABASE": "the ConfigMap mlflow",
    "PGUSER": "the Secret mlflow-database, key username",
    "PGPASSWORD": "the Secret mlflow-database, key password",
    "MLFLOW_BACKEND_STORE_URI": "the ConfigMap mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "the ConfigMap mlflow (the component s3 or gcp sets it)",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "the Secret mlflow-webhooks, key encryption-key",
}
# The same where users have passwords.
REQUIRED_FOR_AUTH = {
    "MLFLOW_AUTH_ADMIN_PASSWORD": "the Secret mlflow-auth, key admin-password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "the Secret mlflow-auth, key flask-secret-key",
}
# What an overlay was to replace.
PLACEHOLDERS = ("BUCKET", "PROJECT")


def check_settings(environment):
    """Everything at once that can be told without asking anybody."""
    required = REQUIRED | (REQUIRED_FOR_AUTH if environment.get("MLFLOW_AUTH_CONFIG_PATH") else {})
    problems = [f"{name} is not set; it comes from {source}" for name, source in required.items() if not environment.get(name)]
    if uri := environment.get("MLFLOW_BACKEND_STORE_URI"):
        url = urlsplit(uri)
        if url.scheme != "postgresql+psycopg2":
            problems.append("MLFLOW_BACKEND_STORE_URI does not begin with postgresql+psycopg2://, the one driver that is here")
        elif url.password is not None:
            problems.append("MLFLOW_BACKEND_STORE_URI has a password in it; leave it to PGPASSWORD: postgresql+psycopg2://")
    if destination := environment.get("MLFLOW_ARTIFACTS_DESTINATION"):
        url = urlsplit(destination)
        if url.scheme not in STORES or not url.netloc:
            problems.append(f"MLFLOW_ARTIFACTS_DESTINATION is {destination!r}; it has to be s3://BUCKET/PATH or gs://BUCKET/PATH")
        elif url.netloc in PLACEHOLDERS:
            problems.append(f"MLFLOW_ARTIFACTS_DESTINATION is still {destination!r}; put your bucket's name there")
        elif url.scheme == "s3":
            problems += problems_of_s3(environment)
    if key := environment.get("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"):
        if not is_fernet_key(key):
            problems.append(
                "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY (the Secret mlflow-webhooks) is no Fernet key: 32 random bytes in URL-safe "
                "base64, as `openssl rand -base64 32 | tr +/ -_` makes them"
            )
    if problems:
        raise Problem("; ".join(problems))


def problems_of_s3(environment):
    both = ("AWS_ACCESS_KEY_ID", "access-key-id"), ("AWS_SECRET_ACCESS_KEY", "secret-access-key")
    missing = [(name, key) for name, key in both if not environment.get(name)]
    # On AWS itself the node may say who we are.
    if len(missing) == 1 or (missing and environment.get("MLFLOW_S3_ENDPOINT_URL")):
        return [f"{name} is not set; it comes from the Secret mlflow-s3, key {key}" for name, key in missing]
    return []


def is_fernet_key(text):
    try:
        return len(base64.b64decode(text, altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


def connect():
    """A connection to the database, once it answers."""
    import psycopg2

    where = f"{os.environ['PGHOST']}:{os.environ.get('PGPORT') or 5432}"
    user, name = os.environ["PGUSER"], os.environ["PGDATABASE"]
    deadline = time.monotonic() + float(os.environ.get("TRACKING_DATABASE_PATIENCE") or 120)
    told = None
    while True:
        try:
            connection = psycopg2.connect("")
            connection.autocommit = True
            return connection
        except psycopg2.OperationalError as error:
            why = " ".join(str(error).split())
            if "authentication failed" in why:
                raise Problem(
                    f"PostgreSQL at {where} refuses the user {user!r}: PGUSER or PGPASSWORD (the Secret mlflow-database) is not what "
                    "the database has; a password that was changed in the Secret has to be changed there, too (ALTER ROLE)"
                ) from None
            if "does not exist" in why and "database" in why:
                raise Problem(f"PostgreSQL at {where} has no database {name!r} (PGDATABASE, the ConfigMap mlflow)") from None
            if "pg_hba.conf" in why:
                raise Problem(f"PostgreSQL at {where} lets {user!r} into {name!r} in no way from here (pg_hba.conf, PGSSLMODE)") from None
            if time.monotonic() > deadline:
                raise Problem(f"PostgreSQL at {where} (PGHOST, PGPORT) does not answer: {why}") from None
            if why != told:
                say(f"waiting for PostgreSQL at {where}: {why}")
                told = why
            time.sleep(1)


def check_artifacts(environment):
    destination = environment["MLFLOW_ARTIFACTS_DESTINATION"]
    url = urlsplit(destination)
    STORES[url.scheme](url.netloc, environment)


def check_s3(bucket, environment):
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = environment.get("MLFLOW_S3_ENDPOINT_URL") or None
    where = endpoint or "AWS"
    try:
        config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 3})
        client = boto3.client("s3", endpoint_url=endpoint, config=config)
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404 or environment.get("TRACKING_CREATE_BUCKET") != "true":
                raise
            create_bucket(client, bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            raise Problem(
                f"there is no bucket {bucket!r} at {where} (MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_S3_ENDPOINT_URL): make it, or set "
                "TRACKING_CREATE_BUCKET=true"
            ) from None
        if status in (400, 401, 403):
            raise Problem(
                f"{where} refuses our key for the bucket {bucket!r} ({status}): the Secret mlflow-s3 is not what the object store has, or "
                "its user may not list the bucket"
            ) from None
        raise Problem(f"{where} answers {status} for the bucket {bucket!r}: {error}") from None
    except (BotoCoreError, ValueError) as error:
        raise Problem(f"no S3 server to be asked for the bucket {bucket!r} at {where} (MLFLOW_S3_ENDPOINT_URL): {error}") from None


def create_bucket(client, bucket):
    try:
        client.create_bucket(Bucket=bucket)
        say(f"made the bucket {bucket!r}")
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        # Another pod was faster.
        pass


def check_gs(bucket, environment):
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    try:
        next(iter(storage.Client(project=environment.get("GOOGLE_CLOUD_PROJECT")).list_blobs(bucket, max_results=1)), None)
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        why = " ".join(str(error).split())
        code = getattr(error, "code", None)
        if code == 404:
            raise Problem(f"there is no bucket {bucket!r} in Cloud Storage (MLFLOW_ARTIFACTS_DESTINATION): create-infra.sh makes it") from None
        if code in (401, 403):
            raise Problem(
                f"Cloud Storage refuses us the bucket {bucket!r} ({code}): the service account mlflow needs roles/storage.objectUser on it, "
                "and Workload Identity (create-infra.sh)"
            ) from None
        raise Problem(f"Cloud Storage cannot be asked for the bucket {bucket!r}: {why}") from None


STORES = {"s3": check_s3, "gs": check_gs}


def migrate(database, _arguments):
    with database.cursor() as cursor:
        lock(cursor)
        before, head = schema(cursor)
    from mlflow.store.db import utils

    if before == head:
        say(f"the database has schema {head} already")
    else:
        engine = utils.create_sqlalchemy_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])
        if utils._is_empty_database(engine):
            say(f"making the tables of schema {head}")
            utils._initialize_tables(engine)
        else:
            say(f"migrating the database from schema {before} to {head}; {DOCUMENT} says how to go back")
            utils._upgrade_db(engine)
    if os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        from mlflow.server.auth import bootstrap_admin_user

        bootstrap_admin_user()
        say("the tables of users and permissions are there")


def lock(cursor):
    """Until this process ends."""
    cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
    if not cursor.fetchone()[0]:
        say("another pod migrates the database; waiting for it")
        cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))


def schema(cursor):
    """The database's schema, where it has one, and this MLflow's."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.version import VERSION

    cursor.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
    before = None
    if cursor.fetchone()[0]:
        cursor.execute("SELECT version_num FROM alembic_version")
        row = cursor.fetchone()
        before = row and row[0]
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(db_url=""))
    if before is not None and before not in {script.revision for script in scripts.walk_revisions()}:
        raise Problem(
            f"the database has schema {before}, which MLflow {VERSION} does not know: a newer one has been here. Use that one again, or "
            f"restore the backup from before it ({DOCUMENT})"
        )
    return before, scripts.get_current_head()


def serve(database, arguments):
    database.close()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
