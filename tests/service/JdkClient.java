import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.concurrent.CompletableFuture;

/** Calls the service with the JDK's own client as it is, and prints a line for each answer. */
public class JdkClient {
    static final String QUESTION = "{\"user_id\": \"u\", \"items\": [\"a\", \"b\"]}";
    static String url, key;

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        key = arguments[1];
        var one = HttpClient.newHttpClient();
        for (int n = 0; n < 4; n++) {
            print(one.send(post("/predict", BodyPublishers.ofString(QUESTION)), BodyHandlers.ofString()));
        }
        var chunks = BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(QUESTION.getBytes()));
        print(one.send(post("/predict", chunks), BodyHandlers.ofString()));

        var asked = new ArrayList<CompletableFuture<HttpResponse<String>>>();
        for (var client : new HttpClient[] {one, HttpClient.newHttpClient()}) {
            for (int n = 0; n < 4; n++) {
                var request = post("/predict", BodyPublishers.ofString(QUESTION));
                asked.add(client.sendAsync(request, BodyHandlers.ofString()));
            }
        }
        for (var answer : asked) {
            print(answer.get());
        }

        var events = new StringBuilder();
        for (int n = 0; n < 1000; n++) {
            events.append(n == 0 ? "" : ",").append("{\"event_id\": \"jdk").append(n).append(
                "\", \"user_id\": \"u\", \"item_id\": \"i\", \"label\": 1, \"timestamp\": \"2024-05-01T12:00:00Z\"}");
        }
        var body = "{\"interactions\": [" + events + "]}";
        print(one.send(post("/interactions", BodyPublishers.ofString(body)), BodyHandlers.ofString()));
        print(one.send(post("/predict", BodyPublishers.ofString(QUESTION)), BodyHandlers.ofString()));
    }

    static HttpRequest post(String path, BodyPublisher body) {
        return HttpRequest.newBuilder(URI.create(url + path)).header("Content-Type", "application/json")
            .header("X-API-Key", key).POST(body).build();
    }

    static void print(HttpResponse<String> answer) {
        System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
    }
}
