// Where a connection of a TCP or UDP service goes. The applier writes a file for each port (services/applier/streams.py): a change of
// endpoints is one rename. njs 0.7 keeps nothing between connections, so the choice is random.
import fs from 'fs';

function row(s) {
    try {
        return JSON.parse(fs.readFileSync(s.variables.sluice_streams + '/' + s.variables.sluice_stream + '.json'));
    } catch (e) {
        return { name: '', endpoints: [] };
    }
}

// `address:port`; empty where nobody answers: nginx closes the connection.
function endpoint(s) {
    var all = row(s).endpoints;
    return all.length ? all[Math.floor(Math.random() * all.length)] : '';
}

function name(s) {
    return row(s).name;
}

export default { endpoint, name };
