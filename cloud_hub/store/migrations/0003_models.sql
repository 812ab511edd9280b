-- Version 3: model packages, the bytes that they are made of, and which agents are to serve what.

-- Blobs --------------------------------------------------------------------------------------------

CREATE TABLE blobs (
    blob_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sha256    text UNIQUE,
    size      bigint,
    stored_at timestamptz NOT NULL DEFAULT now(),
    state     text NOT NULL DEFAULT 'coming',
    CONSTRAINT blobs_state CHECK (state IN ('coming', 'complete', 'going')),
    CONSTRAINT blobs_complete CHECK (
        CASE state
            WHEN 'complete' THEN coalesce(sha256, '') ~ '^[0-9a-f]{64}$' AND coalesce(size, -1) >= 0
            ELSE sha256 IS NULL AND size IS NULL
        END
    )
) WITH (fillfactor = 50);

CREATE TABLE blob_chunks (
    blob_id bigint NOT NULL REFERENCES blobs,
    number  integer NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (blob_id, number),
    CONSTRAINT blob_chunks_size CHECK (length(body) BETWEEN 1 AND 1048576)
);
ALTER TABLE blob_chunks ALTER COLUMN body SET STORAGE EXTERNAL;

-- Models -------------------------------------------------------------------------------------------

CREATE TABLE models (
    name      text NOT NULL,
    version   text NOT NULL,
    sha256    text NOT NULL REFERENCES blobs (sha256),
    manifest  text NOT NULL,
    key       text,
    signature text,
    pushed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version),
    CONSTRAINT models_signed CHECK ((key IS NULL) = (signature IS NULL))
);

CREATE INDEX models_blob ON models (sha256);

CREATE TABLE targets (
    model      text NOT NULL,
    selector   text NOT NULL DEFAULT '',
    version    text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, selector),
    FOREIGN KEY (model, version) REFERENCES models (name, version)
);
