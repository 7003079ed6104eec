"""Files and batches: requests in a file, answered when nobody else needs the engine, results in a file.

The life of a batch is in the database; everything else can be done again from there. The parts:

    database    one SQLite file for what is known about files, batches and their lines
    files       uploaded and written files: rows in the database, contents in a folder beside it
    upload      multipart forms, streamed into that folder
    store       batches and their lines
    validation  is every line of an input file a request?
    output      what a batch has answered, as files
    worker      runs the lines, in the slots that nobody else uses
    in_process  one request through the application's own routes
"""
