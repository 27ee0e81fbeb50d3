-- The newest list of symbols of each market, as JSON: so that their names are known before an exchange has been asked,
-- and where it cannot be asked at all.
CREATE TABLE listing (
    exchange TEXT NOT NULL,
    market TEXT NOT NULL,
    symbols BLOB NOT NULL,
    PRIMARY KEY (exchange, market)
) STRICT, WITHOUT ROWID;
