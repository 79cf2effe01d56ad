-- The customer's database: all of 2013 in schema `records`, and in `public` views of the months that have "arrived".
-- Run once, in one transaction, as the database's superuser; the files are in :directory.
CREATE SCHEMA records AUTHORIZATION customer;
SET ROLE customer;

CREATE TABLE records.flights (
  year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int, arr_time int, sched_arr_time int,
  arr_delay int, carrier text, flight int, tailnum text, origin text, dest text, air_time int, distance int,
  hour int, minute int, time_hour timestamptz
);
CREATE TABLE records.weather (
  origin text, year int, month int, day int, hour int, temp float8, dewp float8, humid float8, wind_dir float8,
  wind_speed float8, wind_gust float8, precip float8, pressure float8, visib float8, time_hour timestamptz
);
CREATE TABLE planes (
  tailnum text PRIMARY KEY, year int, type text, manufacturer text, model text, engines int, seats int, speed int,
  engine text
);
CREATE TABLE airports (
  faa text PRIMARY KEY, name text, lat float8, lon float8, alt int, tz int, dst text, tzone text
);
CREATE TABLE airlines (carrier text PRIMARY KEY, name text);

-- How many months have arrived.
CREATE TABLE records.control (revealed int NOT NULL CHECK (revealed BETWEEN 0 AND 12));
INSERT INTO records.control VALUES (3);

RESET ROLE;
\set copy 'WITH (FORMAT csv, HEADER, NULL ''NA'')'
\set unzip 'unzip -p ' :directory '/flights.csv.zip'
\set weather :directory '/weather.csv'
\set planes :directory '/planes.csv'
\set airports :directory '/airports.csv'
\set airlines :directory '/airlines.csv'
COPY records.flights FROM PROGRAM :'unzip' :copy;
COPY records.weather FROM :'weather' :copy;
COPY planes FROM :'planes' :copy;
COPY airports FROM :'airports' :copy;
COPY airlines FROM :'airlines' :copy;

SET ROLE customer;
CREATE INDEX ON records.flights (year, month);
CREATE INDEX ON records.weather (origin, time_hour);
CREATE VIEW flights AS SELECT * FROM records.flights WHERE month <= (SELECT revealed FROM records.control);
CREATE VIEW weather AS SELECT * FROM records.weather WHERE month <= (SELECT revealed FROM records.control);

CREATE FUNCTION reveal_next_month() RETURNS int LANGUAGE sql
AS 'UPDATE records.control SET revealed = revealed + 1 RETURNING revealed';
REVOKE ALL ON FUNCTION reveal_next_month() FROM public;

GRANT SELECT ON flights, weather, planes, airports, airlines TO flights_reader;
ANALYZE records.flights, records.weather, planes;
